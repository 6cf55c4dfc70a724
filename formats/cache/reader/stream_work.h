/* A stream, and the work its threads do ahead of the caller: reading chunks, gathering rows (stream.c explains why). */
#ifndef CMKD_FORMATS_CACHE_READER_STREAM_WORK_H
#define CMKD_FORMATS_CACHE_READER_STREAM_WORK_H
#include <stdatomic.h>
#include "formats/cache/reader/order.h"

#define CMKD_STREAM_SLACK 64 /* bytes that copies of rows may run over their end */

/* Where a chunk is, once it is read. */
typedef struct cmkd_stream_slot {
  int32_t index;
  atomic_uint ready;
} cmkd_stream_slot;

/* One piece of the order: item byte p of row r, element c at bytes[p * plane + r * elements + c]. */
typedef struct cmkd_stream_piece {
  uint8_t *bytes;
  uint16_t *row_max, *row_range;
  atomic_uint holds; /* 1 + number of the piece that is whole in here */
} cmkd_stream_piece;

/* What a thread works with. */
typedef struct cmkd_stream_worker {
  cmkd_chunk_coder *coder;
  uint8_t *stored;    /* a chunk as in the file */
  uint8_t *raw, *row; /* to scatter: a chunk decompressed, some of its rows put together */
} cmkd_stream_worker;

struct cmkd_stream {
  cmkd_cache *cache;
  uint32_t layout, view;
  const cmkd_codec *codec; /* of the layout */
  size_t elements;         /* of a row */
  uint32_t at;             /* rows delivered */
  cmkd_order_plan plan;
  cmkd_stream_slot *slots; /* (plan.chunk_count) */
  cmkd_region region;      /* slots or scattered rows, then pieces */
  size_t slot_size;
  uint32_t slot_count;
  uint8_t *table; /* scattered rows (plan.n), each one plane after the other, `stride` bytes on; or NULL */
  size_t stride;
  cmkd_stream_piece *ring; /* (ring_size); empty when the plan has no pieces */
  uint32_t ring_size;
  size_t plane;                  /* of a piece */
  uint64_t *seeds;               /* (samples) of the view, loaded when first asked for */
  uint16_t *row_max, *row_range; /* (samples) or NULL */
  pthread_t *threads;
  int thread_count;
  int helps; /* the caller works when it would wait */
  cmkd_stream_worker caller;

  pthread_mutex_t mutex;   /* guards the rest */
  pthread_cond_t due;      /* there is something to do */
  pthread_cond_t progress; /* a chunk or a piece is there */
  uint32_t next, prefix;   /* of the schedule: taken by a thread; all there up to here */
  uint32_t next_piece;     /* pieces taken by a thread */
  uint32_t gathered;       /* all pieces up to here are there */
  uint32_t delivered;      /* pieces converted for the caller */
  uint32_t retired;        /* of plan.retire: slots given back */
  int32_t *free_slots;     /* (free_count) */
  uint32_t free_count;
  int stop;
  int waiting, sleeping; /* the caller waits; threads that wait */
  cmkd_error failure;
};

static inline uint8_t *cmkd_stream_slot_bytes(const cmkd_stream *s, uint32_t chunk) {
  return s->region.bytes + (size_t)s->slots[chunk].index * s->slot_size;
}

int cmkd_stream_worker_make(cmkd_stream_worker *worker, const cmkd_stream *s); /* 0: no memory */
void cmkd_stream_worker_free(cmkd_stream_worker *worker);
void *cmkd_stream_run(void *stream); /* a thread: works until s->stop */

/* The mutex is held on entry and exit of these. */
/* Does one thing that is due; 0: nothing is. */
int cmkd_stream_work_once(cmkd_stream *s, const cmkd_stream_worker *with);
/* Slots whose last row lies before row `done` of the order come free. */
void cmkd_stream_retire(cmkd_stream *s, uint32_t done);
/* Wakes whoever can go on. */
void cmkd_stream_wake(cmkd_stream *s);
#endif
