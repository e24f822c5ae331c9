/* What memory allows a quantization of BF16: reads the source and writes as many bytes of elements to the same places,
 * without arithmetic. A measuring aid of cpu_quantize, compiled when that runs; no part of the library.
 *
 * Rows are written as they are read. For both orientations the source is read in pieces of 256 x 256, in rows, and each
 * piece's columns are written after it, in runs of 256 bytes, from a buffer in the cache. Rows and columns are
 * multiples of 256, buffers are aligned to 32 bytes. Scales, a hundredth of the bytes, are left out. */
#include <immintrin.h>
#include <stdint.h>

enum { PIECE = 256 };

static inline __m256i read32(const uint8_t *at) {
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)at), _mm256_loadu_si256((const __m256i *)(at + 32)));
}

void traffic_rows(const uint8_t *source, int64_t rows, int64_t cols, uint8_t *row_data) {
    for (int64_t i = 0; i < rows * cols; i += 32)
        _mm256_stream_si256((__m256i *)(row_data + i), read32(source + 2 * i));
    _mm_sfence();
}

void traffic_both(const uint8_t *source, int64_t rows, int64_t cols, uint8_t *row_data, uint8_t *col_data) {
    static _Thread_local _Alignas(64) uint8_t buffer[PIECE * PIECE];
    for (int64_t r = 0; r < rows; r += PIECE) {
        for (int64_t c = 0; c < cols; c += PIECE) {
            /* Asks for the next piece, or at the end for this one. */
            int64_t ahead = c + PIECE < cols ? PIECE * 2 : r + PIECE < rows ? (PIECE * cols - c) * 2 : 0;
            for (int64_t i = 0; i < PIECE; i++) {
                for (int64_t j = 0; j < PIECE; j += 32) {
                    int64_t at = (r + i) * cols + c + j;
                    _mm_prefetch((const char *)source + 2 * at + ahead, _MM_HINT_T0);
                    __m256i bytes = read32(source + 2 * at);
                    _mm256_stream_si256((__m256i *)(row_data + at), bytes);
                    _mm256_store_si256((__m256i *)(buffer + i * PIECE + j), bytes);
                }
            }
            for (int64_t j = 0; j < PIECE; j++)
                for (int64_t i = 0; i < PIECE; i += 32)
                    _mm256_stream_si256((__m256i *)(col_data + (c + j) * rows + r + i),
                                        _mm256_load_si256((const __m256i *)(buffer + j * PIECE + i)));
        }
    }
    _mm_sfence();
}
