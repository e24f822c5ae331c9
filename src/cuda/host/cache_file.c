#include "cuda/host/cache_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda/host/driver.h"
#include "cuda/host/images.h"
#include "deepwell/cuda.h"

enum { FILE_MAX = 1 << 18 };

/* ---- hashes ---- */

/* FNV-1a over words of 8 bytes, then over the bytes left. */
static uint64_t hash(uint64_t state, const void *data, size_t size) {
    const uint64_t prime = 0x100000001B3u;
    const uint8_t *bytes = data;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        state = (state ^ word) * prime;
        state ^= state >> 32;
    }
    for (; size; size--)
        state = (state ^ *bytes++) * prime;
    return state;
}

static const uint64_t HASH_START = 0xCBF29CE484222325u;

typedef struct code_search {
    uintptr_t address;
    uint64_t state;
} code_search;

/* Hashes the executable segments of the object that `address` is in: position-independent code, so the same bytes
 * wherever it is loaded. */
static int hash_code(struct dl_phdr_info *object, size_t size, void *argument) {
    (void)size;
    code_search *search = argument;
    bool inside = false;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const uintptr_t begin = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr;
        inside |= object->dlpi_phdr[i].p_type == PT_LOAD && search->address >= begin &&
                  search->address - begin < object->dlpi_phdr[i].p_memsz;
    }
    if (!inside) return 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X)
            search->state =
                hash(search->state, (const void *)(object->dlpi_addr + segment->p_vaddr), segment->p_filesz);
    }
    return 1;
}

/* Tells one build of the library from another: its machine code and its device code. */
static uint64_t build_id;

static void find_build_id(void) {
    code_search search = {(uintptr_t)&find_build_id, HASH_START};
    dl_iterate_phdr(hash_code, &search);
    for (size_t i = 0; i < dw_cuda_image_total; i++)
        search.state =
            hash(search.state, dw_cuda_images[i].begin, (size_t)(dw_cuda_images[i].end - dw_cuda_images[i].begin));
    build_id = search.state;
}

/* ---- the name and the header ---- */

static bool find_folder(const char *wanted, char *folder, size_t capacity) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length = -1;
    if (wanted)
        length = snprintf(folder, capacity, "%s", wanted);
    else if (cache && cache[0] == '/')
        length = snprintf(folder, capacity, "%s/deepwell", cache);
    else if (home && home[0] == '/')
        length = snprintf(folder, capacity, "%s/.cache/deepwell", home);
    return length > 0 && (size_t)length < capacity;
}

/* "580.159.04": the driver's own release, which cuDriverGetVersion does not tell. "" where the system does not. */
static void find_release(char *text, size_t capacity) {
    *text = 0;
    FILE *file = fopen("/sys/module/nvidia/version", "re");
    if (!file) return;
    if (!fgets(text, (int)capacity, file)) *text = 0;
    text[strcspn(text, "\n")] = 0;
    fclose(file);
}

/* What tells this GPU, or this kind of GPU, from others: in words, and as part of a file's name. */
static bool identify(int device, bool each_gpu, const dw_cuda_device_info *info, char identity[40], char name[129]) {
    if (each_gpu) {
        const dw_cuda_driver *driver;
        dw_cu_device handle;
        dw_cu_uuid uuid;
        if (dw_cuda_driver_get(&driver) != DW_OK || driver->device_get(&handle, device) != DW_CU_SUCCESS ||
            driver->device_uuid(&uuid, handle) != DW_CU_SUCCESS)
            return false;
        for (int i = 0; i < 16; i++)
            snprintf(identity + 2 * i, 3, "%02x", uuid.bytes[i]);
        snprintf(name, 129, "%s", identity);
        return true;
    }
    snprintf(identity, 40, "%d multiprocessors", info->multiprocessors);
    snprintf(name, 129, "%s", info->name);
    for (char *c = name; *c; c++)
        if (!(*c >= 'a' && *c <= 'z') && !(*c >= 'A' && *c <= 'Z') && !(*c >= '0' && *c <= '9')) *c = '-';
    return true;
}

bool dw_cache_file_of(int device, const dw_cache_kind *kind, dw_cache_file *file) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_build_id);
    int version;
    dw_cuda_device_info info;
    char identity[40], name[129], release[64];
    if (!find_folder(kind->folder, file->folder, sizeof file->folder) || dw_cuda_driver_version(&version) != DW_OK ||
        dw_cuda_device_get(device, &info) != DW_OK || !identify(device, kind->each_gpu, &info, identity, name))
        return false;
    find_release(release, sizeof release);
    int length = snprintf(file->path, sizeof file->path, "%s/%s-%s-%016" PRIx64 ".txt", file->folder, kind->name, name,
                          build_id);
    snprintf(file->header, sizeof file->header,
             "deepwell %s, format %d\ndevice %s, %s\ndriver %d, %s\nbuild %s, %016" PRIx64 "\n", kind->title,
             kind->format, info.name, identity, version, release, dw_version(), build_id);
    return length > 0 && (size_t)length < sizeof file->path;
}

/* ---- the content: header, lines, and a hash of both ---- */

static void format_end(char line[32], const char *text, size_t length) {
    snprintf(line, 32, "end %016" PRIx64 "\n", hash(HASH_START, text, length));
}

/* The whole file as a string of `*length` bytes, malloc'ed; NULL when it is not a small file of this user's. */
static char *read_text(int descriptor, size_t *length) {
    struct stat facts;
    char *text = NULL;
    *length = 0;
    if (fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_uid == geteuid() &&
        facts.st_size < FILE_MAX && (text = malloc(FILE_MAX)) != NULL) {
        ssize_t got;
        while (*length < FILE_MAX - 1 && (got = read(descriptor, text + *length, FILE_MAX - 1 - *length)) > 0)
            *length += (size_t)got;
        text[*length] = 0;
    }
    return text;
}

char *dw_cache_file_read(const dw_cache_file *file, bool *foreign) {
    *foreign = false;
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) {
        *foreign = errno != ENOENT && errno != ENOTDIR;
        return NULL;
    }
    size_t length;
    char *text = read_text(descriptor, &length), *lines = NULL, end[32];
    close(descriptor);
    format_end(end, "", 0);
    const size_t header = strlen(file->header), tail = strlen(end);
    if (text && length >= header + tail && strlen(text) == length && memcmp(text, file->header, header) == 0) {
        format_end(end, text, length - tail);
        if (strcmp(text + length - tail, end) == 0 && text[length - tail - 1] == '\n')
            lines = strndup(text + header, length - tail - header);
    }
    free(text);
    *foreign = !lines;
    return lines;
}

/* mkdir -p: the last two parts of the path may be missing. */
static void make_folder(const char *folder) {
    char parent[3072];
    snprintf(parent, sizeof parent, "%s", folder);
    *strrchr(parent, '/') = 0;
    mkdir(parent, 0700);
    mkdir(folder, 0700);
}

static bool write_all(int descriptor, const char *text, size_t length) {
    while (length) {
        ssize_t done = write(descriptor, text, length);
        if (done <= 0) return false;
        text += done;
        length -= (size_t)done;
    }
    return true;
}

static bool replace(const dw_cache_file *file, const char *lines) {
    char *text = NULL, end[32], temporary[sizeof file->path + 16];
    int length = asprintf(&text, "%s%s", file->header, lines);
    if (length < 0) return false;
    format_end(end, text, (size_t)length);
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", file->path);
    int descriptor = length + 32 < FILE_MAX ? mkostemp(temporary, O_CLOEXEC) : -1;
    bool written = false;
    if (descriptor >= 0) {
        written = write_all(descriptor, text, (size_t)length) && write_all(descriptor, end, strlen(end));
        written = close(descriptor) == 0 && written && rename(temporary, file->path) == 0;
        if (!written) unlink(temporary);
    }
    free(text);
    return written;
}

bool dw_cache_file_add(const dw_cache_file *file, const char *line, dw_cache_same same) {
    make_folder(file->folder);
    /* Others that add at the same time wait; where the file system knows no locks, one of two may be lost. */
    int folder = open(file->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return false;
    flock(folder, LOCK_EX);
    bool foreign, written = false;
    char *before = dw_cache_file_read(file, &foreign),
         *after = malloc((before ? strlen(before) : 0) + strlen(line) + 2);
    if (after) {
        char *to = after;
        for (const char *at = before, *next; at && *at; at = next) {
            next = strchr(at, '\n') + 1;
            if (same(at, line)) continue;
            memcpy(to, at, (size_t)(next - at));
            to += next - at;
        }
        sprintf(to, "%s\n", line);
        written = replace(file, after);
    }
    free(before);
    free(after);
    close(folder);
    return written;
}
