/* How tiles that do not fill a wave are shared out: every block is walked through its tiles as the kernels do it
 * (copy_tiles, copy_parts and announce_part in gemm_copy.cuh), and what they rely on must hold. */
#include "cuda/device/sm90/gemm_split.h"
#include "registry/selftest_data.h"
#include "support.h"

enum {
    MOST_TILES = 700,
    MOST_WORKERS = 132,
    RANDOM_WALKS = 100000,
    MOST_OTHERS = 31, /* slot_parts of gemm_tiles.cuh */
    /* Shares would be equal but for a stage; each end then moves by less than the least part. */
    MOST_DIFFERENCE = 4 * (DW_GEMM_LEAST_PART - 1) + 1
};

static const int worker_counts[] = {1, 2, 7, 64, 66, MOST_WORKERS};
enum { WORKER_COUNTS = sizeof worker_counts / sizeof *worker_counts };

typedef struct problem {
    int tiles, workers, k_blocks, split;
} problem;

/* What the blocks seen so far have done of a tile. */
typedef struct progress {
    int stages; /* the first ones */
    int block;  /* that has the first part */
    int others; /* how many blocks have parts besides */
    int wanted; /* for how many the first part's block waits */
} progress;

typedef struct outcome {
    int split;          /* tiles in several parts */
    int least, largest; /* shares, in stages, of blocks that have one */
    int blocks;         /* that have one */
    int most;           /* parts of a tile */
    int whole;          /* tiles */
    progress tiles[MOST_TILES];
} outcome;

static outcome walked;

static void check(bool holds, const problem *p, int block, const char *what) {
    if (holds) return;
    fail_msg("%d tiles of %d stages, %d blocks, split %d: block %d: %s does not hold", p->tiles, p->k_blocks,
             p->workers, p->split, block, what);
}
#define HOLDS(condition) check(condition, p, block, #condition)

static void walk_part(const problem *p, int block, const dw_gemm_share *share, int at, int end) {
    const int within = at % p->k_blocks, stages = end - at;
    progress *tile = &walked.tiles[share->whole + at / p->k_blocks];
    HOLDS(stages >= DW_GEMM_LEAST_PART || stages == p->k_blocks);
    HOLDS(within == tile->stages);
    tile->stages += stages;
    if (within == 0) {
        tile->block = block;
        tile->wanted = stages < p->k_blocks ? share->parts : 0;
        return;
    }
    tile->others++;
    HOLDS(at == share->at); /* sums are left before anything is waited for, and there is place for those of one part */
    HOLDS(block == tile->block - tile->others);
}

static void walk_block(const problem *p, int block) {
    const dw_gemm_share share = dw_gemm_share_of(p->workers - 1 - block, p->workers, p->tiles, p->k_blocks, p->split);
    if (block == p->workers - 1) walked.whole = share.whole;
    HOLDS(share.whole == walked.whole);
    HOLDS(share.whole >= 0 && share.whole <= p->tiles);
    for (int at = block; at < share.whole; at += p->workers) {
        HOLDS(walked.tiles[at].stages == 0);
        walked.tiles[at].stages = p->k_blocks;
    }
    HOLDS(share.at >= 0 && share.at <= share.end && share.end <= (p->tiles - share.whole) * p->k_blocks);
    for (int at = share.at, end; at < share.end; at = end) {
        end = (at / p->k_blocks + 1) * p->k_blocks;
        if (end > share.end) end = share.end;
        walk_part(p, block, &share, at, end);
    }
    const int stages = share.end - share.at;
    if (stages == 0) return;
    if (walked.blocks == 0 || stages < walked.least) walked.least = stages;
    if (stages > walked.largest) walked.largest = stages;
    walked.blocks++;
}

/* The last block has the first share, so that parts come in the order of the reduction. */
static void walk(const problem *p) {
    walked = (outcome){0};
    for (int block = p->workers - 1; block >= 0; block--)
        walk_block(p, block);
    const int block = -1; /* all of them */
    for (int i = 0; i < p->tiles; i++) {
        const progress *tile = &walked.tiles[i];
        HOLDS(tile->stages == p->k_blocks);
        HOLDS(tile->wanted == tile->others);
        HOLDS(tile->others <= MOST_OTHERS);
        HOLDS(tile->others <= 7); /* the header says eight parts in all */
        walked.split += tile->others > 0;
        if (tile->others + 1 > walked.most) walked.most = tile->others + 1;
    }
    if (!p->split || p->tiles < p->workers || p->tiles % p->workers == 0) HOLDS(walked.whole == p->tiles);
    if (p->split) HOLDS(walked.whole == dw_gemm_whole_tiles(p->tiles, p->workers, p->k_blocks));
    HOLDS(walked.whole == p->tiles || walked.whole % p->workers == 0);
    /* No longer than if tiles stayed whole, and shared out evenly. */
    const int waves = (p->tiles - walked.whole + p->workers - 1) / p->workers;
    HOLDS(walked.largest <= waves * p->k_blocks);
    if (walked.blocks == p->workers) HOLDS(walked.largest - walked.least <= MOST_DIFFERENCE);
}

static void random_shares(void **state) {
    (void)state;
    dw_random random = {test_seed};
    int split = 0, most = 0;
    for (int i = 0; i < RANDOM_WALKS; i++) {
        const problem p = {.tiles = (int)dw_random_between(&random, 1, MOST_TILES),
                           .workers = worker_counts[dw_random_between(&random, 0, WORKER_COUNTS - 1)],
                           .k_blocks = (int)dw_random_between(&random, 1, 200),
                           .split = dw_random_between(&random, 0, 7) > 0};
        walk(&p);
        split += walked.split > 0;
        if (walked.most > most) most = walked.most;
    }
    print_message("%d of %d are split, a tile in %d parts at most\n", split, RANDOM_WALKS, most);
    assert_true(split > RANDOM_WALKS / 10);
    assert_true(most > 2);
}

static void shares_at_the_edges(void **state) {
    (void)state;
    static const int k_blocks[] = {1,  2,  5,  6,  7,  10, 11,  12,  13,  17,  20,    32,   33,
                                   35, 42, 48, 49, 56, 63, 127, 128, 199, 200, 65535, 65536};
    for (int w = 0; w < WORKER_COUNTS; w++) {
        const int workers = worker_counts[w];
        const int overs[] = {0, 1, 2, workers / 4 - 1, workers / 4, workers / 2, workers * 9 / 10, workers - 1};
        for (int waves = 0; waves <= 5; waves++)
            for (size_t i = 0; i < sizeof overs / sizeof *overs; i++)
                for (size_t j = 0; j < sizeof k_blocks / sizeof *k_blocks; j++)
                    for (int split = 0; split < 2; split++) {
                        const problem p = {waves * workers + overs[i], workers, k_blocks[j], split};
                        if (p.tiles >= 1 && p.tiles <= MOST_TILES) walk(&p);
                    }
    }
}

/* The most stages that are shared out, without a wave more and with it: times the workers they fit 32 bits. */
static void longest_reductions(void **state) {
    (void)state;
    static const int tiles[] = {2 * MOST_WORKERS - 1, MOST_WORKERS + MOST_WORKERS / 4 - 1};
    for (int i = 0; i < 2; i++) {
        const problem p = {tiles[i], MOST_WORKERS, 65535, 1};
        walk(&p);
        assert_int_equal(walked.whole, i == 0 ? MOST_WORKERS : 0);
        assert_true(walked.split > 0);
        assert_int_equal(walked.blocks, MOST_WORKERS);
        const problem longer = {tiles[i], MOST_WORKERS, 65536, 1};
        walk(&longer);
        assert_int_equal(walked.split, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_shares),
        cmocka_unit_test(shares_at_the_edges),
        cmocka_unit_test(longest_reductions),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
