#include "cuda/host/images.h"

#include <string.h>

const dw_cuda_image *dw_cuda_image_find(const char *name) {
    for (size_t i = 0; i < dw_cuda_image_total; i++)
        if (strcmp(dw_cuda_images[i].name, name) == 0) return &dw_cuda_images[i];
    return NULL;
}
