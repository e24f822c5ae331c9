/* Planning: descriptions come in as tuples, decisions go out as tuples. Texts are borrowed from the arguments, which
 * the caller's tuples keep alive for the time of a call. */
#include "module.h"

typedef struct plan_input {
    dw_model model;
    dw_plan_options options;
    dw_layer *layers;
    const char **names, **remarks;
    dw_plan_wish *wishes;
    const char **skip, **only;
    dw_measurement *measurements;
} plan_input;

static void release(plan_input *input) {
    PyMem_Free(input->layers);
    PyMem_Free(input->names);
    PyMem_Free(input->remarks);
    PyMem_Free(input->wishes);
    PyMem_Free(input->skip);
    PyMem_Free(input->only);
    PyMem_Free(input->measurements);
}

/* Room for `list`'s items; NULL with an exception. */
static void *room_for(PyObject *list, size_t size, size_t *count) {
    Py_ssize_t length = PyList_Size(list);
    if (length < 0) return NULL;
    void *room = PyMem_Calloc((size_t)length + 1, size);
    if (!room) PyErr_NoMemory();
    *count = (size_t)length;
    return room;
}

static int read_texts(PyObject *list, const char ***texts, size_t *count) {
    *texts = room_for(list, sizeof **texts, count);
    for (size_t i = 0; *texts && i < *count; i++) {
        Py_ssize_t length;
        (*texts)[i] = PyUnicode_AsUTF8AndSize(PyList_GetItem(list, (Py_ssize_t)i), &length);
        if (!(*texts)[i]) return 0;
    }
    return *texts != NULL;
}

static int read_layer(PyObject *tuple, dw_layer *layer) {
    const char *kind;
    long long in, out, matrices, parameters, shares, from;
    int frozen, no_gradient, transposed;
    if (!PyArg_ParseTuple(tuple, "sssssssssLLLddLspppLL;a layer", &layer->name, &layer->type, &kind,
                          &layer->kind_reason, &layer->obstacle, &layer->fused, &layer->adapted, &layer->kernel,
                          &layer->note, &in, &out, &matrices, &layer->tokens_share, &layer->runs, &parameters,
                          &layer->dtype, &frozen, &no_gradient, &transposed, &shares, &from))
        return 0;
    int found = 0;
    while (found < DW_LAYER_KIND_COUNT && strcmp(kind, dw_layer_kind_name((dw_layer_kind)found)) != 0)
        found++;
    layer->kind = (dw_layer_kind)found; /* one too many is refused by the planner */
    layer->in_features = in;
    layer->out_features = out;
    layer->matrices = matrices;
    layer->parameters = parameters;
    layer->frozen = frozen;
    layer->no_input_gradient = no_gradient;
    layer->transposed = transposed;
    layer->shares_input = shares;
    layer->input_from = from;
    return 1;
}

static int read_model(PyObject *object, plan_input *input) {
    PyObject *names, *remarks, *layers;
    long long parameters;
    if (!PyArg_ParseTuple(object, "sLOOO;the model", &input->model.name, &parameters, &names, &remarks, &layers))
        return 0;
    if (!read_texts(names, &input->names, &input->model.name_count) ||
        !read_texts(remarks, &input->remarks, &input->model.remark_count))
        return 0;
    input->layers = room_for(layers, sizeof *input->layers, &input->model.layer_count);
    for (size_t i = 0; input->layers && i < input->model.layer_count; i++)
        if (!read_layer(PyList_GetItem(layers, (Py_ssize_t)i), &input->layers[i])) return 0;
    input->model.parameters = parameters;
    input->model.names = input->names;
    input->model.remarks = input->remarks;
    input->model.layers = input->layers;
    return input->layers != NULL;
}

static int read_measurements(PyObject *list, plan_input *input) {
    input->measurements = room_for(list, sizeof *input->measurements, &input->options.measurement_count);
    for (size_t i = 0; input->measurements && i < input->options.measurement_count; i++) {
        long long tokens, in, out;
        dw_measurement *m = &input->measurements[i];
        if (!PyArg_ParseTuple(PyList_GetItem(list, (Py_ssize_t)i), "LLLdd;a measurement", &tokens, &in, &out,
                              &m->full_ms, &m->candidate_ms))
            return 0;
        m->tokens = tokens;
        m->in_features = in;
        m->out_features = out;
    }
    input->options.measurements = input->measurements;
    return input->measurements != NULL;
}

static int read_wishes(PyObject *list, plan_input *input) {
    input->wishes = room_for(list, sizeof *input->wishes, &input->options.wish_count);
    for (size_t i = 0; input->wishes && i < input->options.wish_count; i++)
        if (!PyArg_ParseTuple(PyList_GetItem(list, (Py_ssize_t)i), "ss;a wish", &input->wishes[i].pattern,
                              &input->wishes[i].decision))
            return 0;
    input->options.wishes = input->wishes;
    return input->wishes != NULL;
}

static int read_options(PyObject *object, plan_input *input) {
    dw_plan_options *options = &input->options;
    PyObject *wishes, *skip, *only, *measurements;
    long long tokens, sequence, threads;
    int inference;
    if (!PyArg_ParseTuple(object, "sssszipLLLOOOO;the options", &options->precision, &options->target,
                          &options->strategy, &options->device, &options->gpu, &options->block_size, &inference,
                          &tokens, &sequence, &threads, &wishes, &skip, &only, &measurements))
        return 0;
    options->inference = inference;
    options->tokens = tokens;
    options->sequence = sequence;
    options->cpu_threads = threads;
    if (!read_wishes(wishes, input) || !read_texts(skip, &input->skip, &options->skip_count) ||
        !read_texts(only, &input->only, &options->only_count))
        return 0;
    options->skip = input->skip;
    options->only = input->only;
    return read_measurements(measurements, input);
}

static PyObject *cost_tuple(const dw_cost *cost) {
    if (!cost->known) Py_RETURN_NONE;
    return Py_BuildValue("(dddddLL)", cost->forward_ms, cost->backward_ms, cost->quantize_ms, cost->host_ms,
                         cost->alone_ms, (long long)cost->weight_bytes, (long long)cost->saved_bytes);
}

static PyObject *decision_tuple(const dw_decision *d) {
    return Py_BuildValue("(ssssssdsssNNNN)", dw_action_name(d->action), d->reason, d->precision, d->block,
                         d->weight_block, d->kernel, d->flops_share, dw_forms_name(d->input_forms),
                         dw_forms_name(d->gradient_forms), dw_forms_name(d->weight_forms), cost_tuple(&d->full),
                         cost_tuple(&d->candidate), PyBool_FromLong(d->measured), PyBool_FromLong(d->by_time));
}

/* A list of `count` objects that `make` builds. */
static PyObject *list_of(const dw_plan *plan, size_t count, PyObject *(*make)(const dw_plan *, size_t)) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *item = make(plan, i);
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *make_decision(const dw_plan *plan, size_t index) {
    return decision_tuple(dw_plan_decision(plan, index));
}

static PyObject *make_note(const dw_plan *plan, size_t index) {
    return PyUnicode_FromString(dw_plan_note(plan, index));
}

static PyObject *plan_result(const dw_plan *plan) {
    dw_plan_summary summary;
    dw_plan_summarize(plan, &summary);
    return Py_BuildValue("(ssNN)", summary.block, summary.weight_block,
                         list_of(plan, dw_plan_note_count(plan), make_note),
                         list_of(plan, dw_plan_decision_count(plan), make_decision));
}

PyObject *core_plan(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *words[] = {"model", "options", "expect", NULL};
    PyObject *model, *options, *result = NULL;
    int expect = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|p:plan", words, &model, &options, &expect)) return NULL;
    plan_input input = {0};
    if (read_model(model, &input) && read_options(options, &input)) {
        dw_plan *plan = NULL;
        dw_status status = dw_plan_create(&input.model, &input.options, &plan);
        if (status == DW_OK && expect) status = dw_plan_expect_conversion(plan);
        result = status == DW_OK ? plan_result(plan) : raise_status(module, status);
        dw_plan_destroy(plan);
    }
    release(&input);
    return result;
}

PyObject *core_plan_explain(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *words[] = {"model", "options", "format", NULL};
    PyObject *model, *options, *result = NULL;
    int format;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOi:plan_explain", words, &model, &options, &format))
        return NULL;
    plan_input input = {0};
    if (read_model(model, &input) && read_options(options, &input)) {
        dw_plan *plan = NULL;
        char *text = NULL;
        dw_status status = dw_plan_create(&input.model, &input.options, &plan);
        if (status == DW_OK) status = dw_plan_explain(plan, (dw_plan_format)format, &text);
        result = status == DW_OK ? PyUnicode_FromString(text) : raise_status(module, status);
        dw_plan_text_free(text);
        dw_plan_destroy(plan);
    }
    release(&input);
    return result;
}

PyObject *core_plan_check_options(PyObject *module, PyObject *options) {
    plan_input input = {0};
    PyObject *result = NULL;
    if (read_options(options, &input)) {
        dw_status status = dw_plan_check_options(&input.options);
        result = status == DW_OK ? Py_NewRef(Py_None) : raise_status(module, status);
    }
    release(&input);
    return result;
}

PyObject *core_plan_matches(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name, *pattern;
    if (!PyArg_ParseTuple(arguments, "ss:plan_matches", &name, &pattern)) return NULL;
    return PyBool_FromLong(dw_plan_matches(name, pattern));
}

static PyObject *make_evidence(const dw_plan *plan, size_t index) {
    (void)plan;
    dw_evidence e;
    if (dw_evidence_get(index, &e) != DW_OK) return NULL;
    return Py_BuildValue("(ssdss)", e.device, e.what, e.value, e.unit, e.source);
}

PyObject *core_plan_evidence(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return list_of(NULL, dw_evidence_count(), make_evidence);
}
