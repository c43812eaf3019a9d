/* The jpeglib side of decode/jpeg.rs: a decoder of one image, its header, region, rows and end.
 *
 * Promises:
 *  - A handle takes one image. jpeg_abort_decompress would keep the tables of one image for the next, and an image
 *    without tables of its own would take them; creating a decoder costs nothing that can be measured.
 *  - libjpeg's longjmp never leaves this file: every entry point that calls libjpeg sets its own jmp_buf first.
 *  - Nothing is printed, nothing calls exit(); the text of an error is kept in the handle.
 *  - Input is read only from [data, data + len); past the end the decoder sees an end-of-image marker.
 *  - libjpeg's own pools are bounded (max_memory), and so are the scans of a progressive file (max_visits).
 *
 * It does not decide anything: what to decode, what is an error and what only a warning is decided in Rust.
 */
#include <limits.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

/* Kept in step with `Status` in jpeg.rs. */
enum { FR_OK = 0, FR_MALFORMED = 1, FR_UNSUPPORTED = 2, FR_TOO_LARGE = 3 };

struct fr_header {
  uint64_t scan_offset;   /* of the first byte after the first scan's header */
  uint64_t blocks;        /* 8x8 blocks of all components together */
  uint32_t width;
  uint32_t height;
  uint32_t components;
  uint32_t multi_scan;    /* 1: all coefficients are kept in memory and the whole file is read first */
  uint32_t cmyk;          /* 1: the rows come as CMYK, inverted as Adobe stores it */
};

struct fr_region {
  uint32_t x;             /* where the decoded columns begin: at or left of the column asked for */
  uint32_t width;         /* how many columns a row holds */
};

struct fr_jpeg {
  struct jpeg_decompress_struct cinfo;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  struct jpeg_progress_mgr progress;
  jmp_buf escape;
  uint64_t max_visits;    /* blocks x scans */
  uint64_t blocks;
  int status;
  int ran_dry;            /* the picture's entropy-coded data ended before its blocks did */
  JDIMENSION ended_row;   /* the row of blocks in which the file's end marker came; none: UINT_MAX */
  int past_end;           /* a byte beyond the end of the file was asked for */
  int created;
  char message[JMSG_LENGTH_MAX];
};

static const JOCTET fake_end[2] = { 0xFF, JPEG_EOI };

static int classify(int code)
{
  switch (code) {
  case JERR_SOF_UNSUPPORTED:
  case JERR_BAD_PRECISION:
  case JERR_CONVERSION_NOTIMPL:
  case JERR_CCIR601_NOTIMPL:
  case JERR_FRACT_SAMPLE_NOTIMPL:
  case JERR_ARITH_NOTIMPL:
  case JERR_NOTIMPL:
  case JERR_NOT_COMPILED:
  case JERR_COMPONENT_COUNT:
  case JERR_BAD_J_COLORSPACE:
    return FR_UNSUPPORTED;
  case JERR_OUT_OF_MEMORY:
  case JERR_NO_BACKING_STORE:
  case JERR_IMAGE_TOO_BIG:
  case JERR_WIDTH_OVERFLOW:
    return FR_TOO_LARGE;
  default:
    return FR_MALFORMED;
  }
}

static void on_error(j_common_ptr cinfo)
{
  struct fr_jpeg *self = (struct fr_jpeg *)cinfo->client_data;
  self->status = classify(cinfo->err->msg_code);
  (*cinfo->err->format_message)(cinfo, self->message);
  longjmp(self->escape, 1);
}

static void on_message(j_common_ptr cinfo, int level)
{
  struct fr_jpeg *self = (struct fr_jpeg *)cinfo->client_data;
  int marker = self->cinfo.unread_marker;
  if (level >= 0 || cinfo->err->msg_code != JWRN_HIT_MARKER)
    return;
  /* A restart marker that comes too early is damage inside the picture: what follows it is there. */
  if (!(marker >= JPEG_RST0 && marker <= JPEG_RST0 + 7))
    self->ran_dry = 1;
  if (marker == JPEG_EOI && self->ended_row == UINT_MAX)
    self->ended_row = self->cinfo.input_iMCU_row;
}

static void on_output(j_common_ptr cinfo)
{
  (void)cinfo;
}

static void on_progress(j_common_ptr cinfo)
{
  struct fr_jpeg *self = (struct fr_jpeg *)cinfo->client_data;
  uint64_t scans = (uint64_t)self->cinfo.input_scan_number;
  /* A few kilobytes can hold hundreds of scans, each of which walks every block. */
  if (scans > 500 || scans * self->blocks > self->max_visits) {
    self->status = FR_TOO_LARGE;
    snprintf(self->message, sizeof self->message, "it has over %llu scans of %llu blocks",
             (unsigned long long)(scans - 1), (unsigned long long)self->blocks);
    longjmp(self->escape, 1);
  }
}

static void source_nothing(j_decompress_ptr cinfo)
{
  (void)cinfo;
}

static boolean source_fill(j_decompress_ptr cinfo)
{
  struct fr_jpeg *self = (struct fr_jpeg *)cinfo->client_data;
  self->past_end = 1;
  cinfo->src->next_input_byte = fake_end;
  cinfo->src->bytes_in_buffer = sizeof fake_end;
  return TRUE;
}

static void source_skip(j_decompress_ptr cinfo, long count)
{
  struct jpeg_source_mgr *src = cinfo->src;
  if (count <= 0)
    return;
  if ((size_t)count > src->bytes_in_buffer) {
    source_fill(cinfo);
    return;
  }
  src->next_input_byte += count;
  src->bytes_in_buffer -= (size_t)count;
}

struct fr_jpeg *fr_jpeg_new(void)
{
  struct fr_jpeg *const self = calloc(1, sizeof *self);
  if (self == NULL)
    return NULL;
  self->cinfo.err = jpeg_std_error(&self->errors);
  self->errors.error_exit = on_error;
  self->errors.emit_message = on_message;
  self->errors.output_message = on_output;
  self->cinfo.client_data = self;
  if (setjmp(self->escape)) {
    free(self);
    return NULL;
  }
  jpeg_create_decompress(&self->cinfo);
  /* jpeg_create_decompress clears the struct but for err and client_data. */
  self->source.init_source = source_nothing;
  self->source.fill_input_buffer = source_fill;
  self->source.skip_input_data = source_skip;
  self->source.resync_to_restart = jpeg_resync_to_restart;
  self->source.term_source = source_nothing;
  self->cinfo.src = &self->source;
  self->progress.progress_monitor = on_progress;
  self->cinfo.progress = &self->progress;
  self->ended_row = UINT_MAX;
  self->created = 1;
  return self;
}

void fr_jpeg_free(struct fr_jpeg *self)
{
  if (self == NULL)
    return;
  if (self->created && !setjmp(self->escape))
    jpeg_destroy_decompress(&self->cinfo);
  free(self);
}

const char *fr_jpeg_message(const struct fr_jpeg *self)
{
  return self->message;
}

/* Reads up to the first scan's header. `data` must stay valid until fr_jpeg_free. Once per handle. */
int fr_jpeg_header(struct fr_jpeg *self, const uint8_t *data, size_t len, uint64_t max_memory, uint64_t max_visits,
                   struct fr_header *header)
{
  j_decompress_ptr cinfo = &self->cinfo;
  int ci;
  self->max_visits = max_visits;
  self->source.next_input_byte = data;
  self->source.bytes_in_buffer = len;
  if (setjmp(self->escape))
    return self->status;
  cinfo->mem->max_memory_to_use = max_memory > (uint64_t)INT32_MAX * 16 ? (long)INT32_MAX * 16 : (long)max_memory;
  jpeg_read_header(cinfo, TRUE);
  if (self->past_end) {
    snprintf(self->message, sizeof self->message, "the file ends inside its header");
    return FR_MALFORMED;
  }
  header->scan_offset = len - self->source.bytes_in_buffer;
  header->width = cinfo->image_width;
  header->height = cinfo->image_height;
  header->components = (uint32_t)cinfo->num_components;
  header->multi_scan = jpeg_has_multiple_scans(cinfo) ? 1 : 0;
  for (ci = 0; ci < cinfo->num_components; ci++)
    self->blocks += (uint64_t)cinfo->comp_info[ci].width_in_blocks * cinfo->comp_info[ci].height_in_blocks;
  header->blocks = self->blocks;
  if (cinfo->data_precision != 8) {
    snprintf(self->message, sizeof self->message, "a JPEG of %d bits a sample (only 8 are decoded)",
             cinfo->data_precision);
    return FR_UNSUPPORTED;
  }
  switch (cinfo->jpeg_color_space) {
  case JCS_GRAYSCALE:
  case JCS_RGB:
  case JCS_YCbCr:
    cinfo->out_color_space = JCS_EXT_RGBX;
    header->cmyk = 0;
    break;
  case JCS_CMYK:
  case JCS_YCCK:
    cinfo->out_color_space = JCS_CMYK;
    header->cmyk = 1;
    break;
  default:
    snprintf(self->message, sizeof self->message, "%d colour components of unknown meaning", cinfo->num_components);
    return FR_UNSUPPORTED;
  }
  cinfo->dct_method = JDCT_ISLOW;
  cinfo->do_fancy_upsampling = TRUE;
  return FR_OK;
}

/* Starts the decoder for columns [x, x + width) where `crop` is set, for all columns otherwise, and says which
 * columns it will give. A multi-scan file is entropy-decoded as a whole here. */
int fr_jpeg_start(struct fr_jpeg *self, int crop, uint32_t x, uint32_t width, struct fr_region *region)
{
  j_decompress_ptr cinfo = &self->cinfo;
  JDIMENSION left = x, columns = width;
  if (setjmp(self->escape))
    return self->status;
  jpeg_start_decompress(cinfo);
  /* Where scans are missing, libjpeg smooths across blocks, and what it would see beyond the crop is lost: decode
   * such a file whole. */
  if (crop && cinfo->coef_bits != NULL) {
    int ci, k;
    for (ci = 0; ci < cinfo->num_components && crop; ci++)
      for (k = 0; k < 10; k++)
        if (cinfo->coef_bits[ci][k] != 0)
          crop = 0;
  }
  if (crop)
    jpeg_crop_scanline(cinfo, &left, &columns);
  else {
    left = 0;
    columns = cinfo->output_width;
  }
  region->x = left;
  region->width = cinfo->output_width;
  return FR_OK;
}

/* Decodes `rows` rows from row `y` on into `out`, `stride` bytes apart; the caller has made room for them. */
int fr_jpeg_rows(struct fr_jpeg *self, uint32_t y, uint32_t rows, uint8_t *out, size_t stride)
{
  j_decompress_ptr cinfo = &self->cinfo;
  JSAMPROW pointers[16];
  if (setjmp(self->escape))
    return self->status;
  if (y > cinfo->output_scanline)
    jpeg_skip_scanlines(cinfo, y - cinfo->output_scanline);
  while (rows > 0) {
    uint32_t batch = rows < 16 ? rows : 16, i;
    JDIMENSION got;
    for (i = 0; i < batch; i++)
      pointers[i] = out + (size_t)i * stride;
    got = jpeg_read_scanlines(cinfo, pointers, batch);
    if (got == 0) {
      /* The source never suspends, so this is a decoder that ran past its last row. */
      snprintf(self->message, sizeof self->message, "the decoder gave no more rows");
      self->status = FR_MALFORMED;
      return FR_MALFORMED;
    }
    out += (size_t)got * stride;
    rows -= got;
  }
  return FR_OK;
}

/* Whether the rows given so far show that data are missing: the end marker came before the last row of blocks. In that
 * row damage elsewhere can have swallowed a few blocks. */
int fr_jpeg_ended(const struct fr_jpeg *self)
{
  return self->ended_row != UINT_MAX && self->ended_row + 1 < self->cinfo.total_iMCU_rows;
}

/* Whether data of the picture are missing: it reads what is left of them, past the rows that were asked for. */
int fr_jpeg_end(struct fr_jpeg *self, int *missing)
{
  j_decompress_ptr cinfo = &self->cinfo;
  int ci, k;
  if (setjmp(self->escape))
    return self->status;
  if (!jpeg_has_multiple_scans(cinfo) && cinfo->output_scanline < cinfo->output_height) {
    /* Skipping to the very end would skip the data too; the last row makes libjpeg read them. */
    JDIMENSION left = cinfo->output_height - 1 - cinfo->output_scanline;
    JSAMPROW last = (JSAMPROW)(*cinfo->mem->alloc_large)((j_common_ptr)cinfo, JPOOL_IMAGE,
                                                         (size_t)cinfo->output_width * 4);
    if (left > 0)
      jpeg_skip_scanlines(cinfo, left);
    jpeg_read_scanlines(cinfo, &last, 1);
  }
  /* Arithmetic coding takes the end of its data for zeros: there only a file's end tells. */
  *missing = self->ran_dry || (self->past_end && cinfo->arith_code);
  for (ci = 0; ci < cinfo->num_components; ci++) {
    if (cinfo->comp_info[ci].quant_table == NULL)
      *missing = 1; /* no scan had this component */
    if (cinfo->coef_bits != NULL) {
      if (cinfo->coef_bits[ci][0] < 0)
        *missing = 1;
      for (k = 0; k < DCTSIZE2 && self->past_end; k++)
        if (cinfo->coef_bits[ci][k] != 0)
          *missing = 1; /* the file ends between two scans */
    }
  }
  return FR_OK;
}
