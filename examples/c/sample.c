/* Draws samples of an exported model, and measures their likelihood, through TensorFlow's C API.

     sample SAVED_MODEL SEED COUNT TEMPERATURE DIRECTORY [REPEATS]

   writes DIRECTORY/SEED.png and those of the next seeds, COUNT files in all, and prints a line for each
   with its -ELBO in nats and its bits per dimension. With REPEATS, it prints the median and the least
   time of so many calls of `sample` as well.

   The headers and the libraries are those of the pip package (T is what
   `python -c "import tensorflow as tf; print(tf.sysconfig.get_lib())"` prints):

     gcc -std=c11 -O2 -Wall -I$T/include examples/c/sample.c -o sample \
       $T/libtensorflow_cc.so.2 $T/libtensorflow_framework.so.2 -Wl,-rpath,$T

   The C API knows tensors of a graph and not signatures: which tensor is `seed` of `sample` stands in
   the SavedModel's MetaGraphDef, a protocol buffer. The first part of this file finds it there.
*/

#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

#define MOST_IMAGES 1024
#define MOST_VALUES 4 /* inputs or outputs of a call here */

_Noreturn static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(EXIT_FAILURE);
}

static void check(const TF_Status *status, const char *doing) {
  if (TF_GetCode(status) != TF_OK) fail("%s: %s", doing, TF_Message(status));
}

/* Protocol buffers: a message is a sequence of numbered fields, and nested messages are bytes. */

typedef struct {
  const uint8_t *at, *end;
} Bytes;

static uint64_t read_varint(Bytes *message) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && message->at < message->end; shift += 7) {
    const uint8_t byte = *message->at++;
    value |= (uint64_t)(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  fail("The SavedModel's MetaGraphDef is damaged.");
}

/* Takes the next field off a message; false at its end. Of what is not bytes, `content` is empty. */
static bool next_field(Bytes *message, uint64_t *number, Bytes *content) {
  if (message->at >= message->end) return false;
  const uint64_t tag = read_varint(message);
  uint64_t length = 0;
  *number = tag >> 3;
  switch (tag & 7) {
    case 0: read_varint(message); break;
    case 1: length = 8; break;
    case 2: length = read_varint(message); break;
    case 5: length = 4; break;
    default: fail("The SavedModel's MetaGraphDef is damaged.");
  }
  if (length > (uint64_t)(message->end - message->at)) {
    fail("The SavedModel's MetaGraphDef is damaged.");
  }
  content->at = message->at;
  content->end = message->at += (tag & 7) == 2 ? length : 0;
  if ((tag & 7) != 2) message->at += length;
  return true;
}

/* Finds a field of bytes. */
static bool find_field(Bytes message, uint64_t number, Bytes *content) {
  uint64_t found;
  while (next_field(&message, &found, content)) {
    if (found == number) return true;
  }
  return false;
}

/* Finds the value of a key in a map, which is a repeated field of entries {1: key, 2: value}. */
static bool find_entry(Bytes message, uint64_t map, const char *key, Bytes *value) {
  uint64_t number;
  Bytes entry, name;
  while (next_field(&message, &number, &entry)) {
    if (number == map && find_field(entry, 1, &name) &&
        (size_t)(name.end - name.at) == strlen(key) &&
        memcmp(name.at, key, strlen(key)) == 0 && find_field(entry, 2, value)) {
      return true;
    }
  }
  return false;
}

/* The model: a graph, a session with the values of its variables, and its signatures. */

typedef struct {
  TF_Graph *graph;
  TF_Session *session;
  TF_Buffer *meta_graph; /* MetaGraphDef */
} Model;

enum { SIGNATURES = 5 };                /* MetaGraphDef.signature_def */
typedef enum { INPUTS = 1, OUTPUTS } Side; /* SignatureDef.inputs, SignatureDef.outputs */
enum { NAME = 1 };                      /* TensorInfo.name */

static Model load(const char *directory) {
  const char *const tags[] = {"serve"};
  Model model = {.graph = TF_NewGraph(), .meta_graph = TF_NewBuffer()};
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Status *status = TF_NewStatus();
  model.session = TF_LoadSessionFromSavedModel(options, NULL, directory, tags, 1, model.graph,
                                               model.meta_graph, status);
  check(status, "Loading the SavedModel");
  TF_DeleteStatus(status);
  TF_DeleteSessionOptions(options);
  return model;
}

static void unload(Model model) {
  TF_Status *status = TF_NewStatus();
  TF_DeleteSession(model.session, status);
  check(status, "Closing the session");
  TF_DeleteStatus(status);
  TF_DeleteGraph(model.graph);
  TF_DeleteBuffer(model.meta_graph);
}

/* The tensor behind an input or output of a signature: of "Operation:1" it is output 1. */
static TF_Output find_tensor(const Model *model, const char *signature, Side side,
                             const char *value) {
  const uint8_t *start = model->meta_graph->data;
  const Bytes whole = {start, start + model->meta_graph->length};
  Bytes definition, information, name;
  if (!find_entry(whole, SIGNATURES, signature, &definition)) {
    fail("The SavedModel has no signature '%s'.", signature);
  }
  if (!find_entry(definition, side, value, &information) ||
      !find_field(information, NAME, &name)) {
    fail("The signature '%s' has no '%s'.", signature, value);
  }
  char operation[256];
  int index = 0;
  snprintf(operation, sizeof operation, "%.*s", (int)(name.end - name.at), (const char *)name.at);
  char *colon = strrchr(operation, ':');
  if (colon != NULL) {
    index = atoi(colon + 1);
    *colon = '\0';
  }
  const TF_Output tensor = {TF_GraphOperationByName(model->graph, operation), index};
  if (tensor.oper == NULL) fail("The graph has no operation '%s'.", operation);
  return tensor;
}

typedef struct {
  const char *name;
  TF_Tensor *tensor;
} Value;

/* Calls a signature; the caller deletes the outputs. */
static void call(const Model *model, const char *signature, const Value *inputs, int num_inputs,
                 Value *outputs, int num_outputs) {
  TF_Output fed[MOST_VALUES], fetched[MOST_VALUES];
  TF_Tensor *given[MOST_VALUES], *received[MOST_VALUES];
  for (int i = 0; i < num_inputs; ++i) {
    fed[i] = find_tensor(model, signature, INPUTS, inputs[i].name);
    given[i] = inputs[i].tensor;
  }
  for (int i = 0; i < num_outputs; ++i) {
    fetched[i] = find_tensor(model, signature, OUTPUTS, outputs[i].name);
  }
  TF_Status *status = TF_NewStatus();
  TF_SessionRun(model->session, NULL, fed, given, num_inputs, fetched, received, num_outputs, NULL,
                0, NULL, status);
  check(status, signature);
  TF_DeleteStatus(status);
  for (int i = 0; i < num_outputs; ++i) outputs[i].tensor = received[i];
}

static TF_Tensor *vector(TF_DataType type, int64_t rows) {
  TF_Tensor *tensor = TF_AllocateTensor(type, &rows, 1, (size_t)rows * TF_DataTypeSize(type));
  if (tensor == NULL) fail("There is no memory for %" PRId64 " values.", rows);
  return tensor;
}

/* What the program does. */

/* Returns the pictures of seeds, PNG (B,), a tensor of strings. */
static TF_Tensor *sample(const Model *model, int64_t seed, int count, float temperature) {
  const Value inputs[] = {{"seed", vector(TF_INT64, count)},
                          {"temperature", vector(TF_FLOAT, count)}};
  for (int i = 0; i < count; ++i) {
    ((int64_t *)TF_TensorData(inputs[0].tensor))[i] = seed + i;
    ((float *)TF_TensorData(inputs[1].tensor))[i] = temperature;
  }
  Value output = {"image_bytes", NULL};
  call(model, "sample", inputs, 2, &output, 1);
  TF_DeleteTensor(inputs[0].tensor);
  TF_DeleteTensor(inputs[1].tensor);
  return output.tensor;
}

/* Prints a line for each picture with its likelihood; seed i draws its latent variables, too. */
static void print_likelihoods(const Model *model, TF_Tensor *pictures, int64_t seed, int count) {
  const Value inputs[] = {{"image_bytes", pictures}, {"seed", vector(TF_INT64, count)}};
  for (int i = 0; i < count; ++i) ((int64_t *)TF_TensorData(inputs[1].tensor))[i] = seed + i;
  Value outputs[] = {{"elbo", NULL}, {"bits_per_dim", NULL}, {"error", NULL}};
  call(model, "log_likelihood", inputs, 2, outputs, 3);
  const float *elbo = TF_TensorData(outputs[0].tensor);
  const float *bits = TF_TensorData(outputs[1].tensor);
  const TF_TString *errors = TF_TensorData(outputs[2].tensor);
  for (int i = 0; i < count; ++i) {
    if (TF_StringGetSize(&errors[i]) > 0) {
      fail("Picture %" PRId64 ": %.*s", seed + i, (int)TF_StringGetSize(&errors[i]),
           TF_StringGetDataPointer(&errors[i]));
    }
    printf("seed %" PRId64 ": %.4f nats, %.6f bits/dim\n", seed + i, -elbo[i], bits[i]);
  }
  TF_DeleteTensor(inputs[1].tensor);
  for (int i = 0; i < 3; ++i) TF_DeleteTensor(outputs[i].tensor);
}

static void write_picture(const char *directory, int64_t seed, const TF_TString *contents) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%" PRId64 ".png", directory, seed) >= (int)sizeof path) {
    fail("The name of the directory is too long.");
  }
  FILE *file = fopen(path, "wb");
  const size_t size = TF_StringGetSize(contents);
  if (file == NULL || fwrite(TF_StringGetDataPointer(contents), 1, size, file) != size ||
      fclose(file) != 0) {
    perror(path);
    exit(EXIT_FAILURE);
  }
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void print_times(const Model *model, int64_t seed, int count, float temperature,
                        int repeats) {
  double *times = calloc((size_t)repeats, sizeof *times);
  if (times == NULL) fail("There is no memory for %d times.", repeats);
  for (int i = 0; i < repeats; ++i) {
    const double start = milliseconds();
    TF_DeleteTensor(sample(model, seed, count, temperature));
    times[i] = milliseconds() - start;
  }
  qsort(times, (size_t)repeats, sizeof *times, ascending);
  printf("TensorFlow %s: sample of %d, %d calls: median %.2f ms, fastest %.2f ms\n", TF_Version(),
         count, repeats, times[repeats / 2], times[0]);
  free(times);
}

/* Reads a whole number; the program ends if the text is another one, or something else. */
static int64_t whole_number(const char *text, const char *name, int64_t least, int64_t most) {
  char *end;
  const intmax_t number = strtoimax(text, &end, 10); /* the largest if the text's is larger */
  if (end == text || *end != '\0' || number < least || number > most) {
    fail("%s is a whole number from %" PRId64 " to %" PRId64 ", and not '%s'.", name, least, most,
         text);
  }
  return number;
}

int main(int argc, char **argv) {
  if (argc != 6 && argc != 7) {
    fail("usage: %s SAVED_MODEL SEED COUNT TEMPERATURE DIRECTORY [REPEATS]", argv[0]);
  }
  const int count = (int)whole_number(argv[3], "COUNT", 1, MOST_IMAGES);
  const int64_t seed = whole_number(argv[2], "SEED", 0, INT64_MAX - count);
  char *end;
  const float temperature = strtof(argv[4], &end);
  if (end == argv[4] || *end != '\0' || !(temperature >= 0)) {
    fail("TEMPERATURE is a number from 0, and not '%s'.", argv[4]);
  }
  const int repeats = argc == 7 ? (int)whole_number(argv[6], "REPEATS", 1, 1000000) : 0;

  const Model model = load(argv[1]);
  TF_Tensor *pictures = sample(&model, seed, count, temperature);
  const TF_TString *contents = TF_TensorData(pictures);
  for (int i = 0; i < count; ++i) write_picture(argv[5], seed + i, &contents[i]);
  print_likelihoods(&model, pictures, seed, count);
  TF_DeleteTensor(pictures);
  if (repeats > 0) print_times(&model, seed, count, temperature, repeats);
  unload(model);
  return EXIT_SUCCESS;
}
