/*
 * The assembly of a large request, compiled: its pieces go straight into the `Request` that the handler gets.
 *
 * `pktline.Assembly` is the specification, but for the type that `join` returns; tests/contract/test_assembly.py runs
 * the same routine on both. What is gained is one copy of a large request, and clearing the memory for it: with 10 MB
 * that is more than the kernel's own copy from the socket (docs/performance.md).
 *
 * A Request is a subclass of bytes with a dictionary, so it is an object of variable size with this layout:
 *
 *     head, size, hash | data, a zero byte | padding, pointer to the dictionary (Python 3.11; later ones have it before)
 *
 * Room is made for more data than has come. At the end the size is set to what came, and the pointer moves to where an
 * object of that size has it. `layout_is_known` compares all this with an object that the interpreter has made; where
 * it differs, this type refuses to be made, and the Python class is used.
 *
 * Limited API of Python 3.11: one build serves every later version.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <string.h>

#define FIRST_ROOM ((Py_ssize_t)64 * 1024)          /* bytes */
#define MOST_TRUSTED ((Py_ssize_t)32 * 1024 * 1024) /* bytes of room that the size of the last request may ask for */
#define SURE ((Py_ssize_t)1024 * 1024)              /* bytes that have come before more than so much room is made */
#define POINTER ((Py_ssize_t)sizeof(void *))
#define MOST_DATA (PY_SSIZE_T_MAX / 4)

typedef struct {
    PyObject_HEAD
    PyTypeObject *request_type;
    Py_ssize_t tail;             /* bytes of the pointer to the dictionary at the end of a request; 0 for none */
    PyObject *request;           /* not yet seen by anyone else, and not tracked by the collector */
    Py_ssize_t room, size;       /* bytes of data: for which there is room, and that have come */
} Assembly;

static PyTypeObject *known_type; /* whose layout was compared, once: an exchange makes an assembly each time */
static Py_ssize_t known_tail;
static Py_ssize_t last_size;     /* of a request that was joined: the next one is often as large */

static Py_hash_t *hash_of(PyObject *request)
{
    return (Py_hash_t *)PyBytes_AsString(request) - 1;
}

/* Set the size, and clear what follows the data: a zero byte, padding, and the pointer to the dictionary. */
static void set_size(const Assembly *self, PyObject *request, Py_ssize_t size)
{
    char *data = PyBytes_AsString(request);
    Py_ssize_t whole = (data - (char *)request) + size + 1 + self->tail;
    char *end = (char *)request + (whole + POINTER - 1) / POINTER * POINTER;
    Py_SET_SIZE((PyVarObject *)request, size);
    memset(data + size, 0, end - (data + size));
}

static PyObject *new_request(const Assembly *self, Py_ssize_t room)
{
    PyObject *request = (PyObject *)PyObject_GC_NewVar(PyVarObject, self->request_type, room);
    if (request == NULL)
        return NULL;
    *hash_of(request) = -1;      /* not computed */
    set_size(self, request, room);
    return request;
}

static long number_of(PyTypeObject *type, const char *name)
{
    PyObject *number = PyObject_GetAttrString((PyObject *)type, name);
    long value = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    PyErr_Clear();
    return value;
}

/* Compare the layout that is described above with an object that the interpreter has made, and note the tail. */
static int layout_is_known(Assembly *self, PyTypeObject *type)
{
    PyObject *made;
    Py_ssize_t header;
    int known;
    if (!PyType_IsSubtype(type, &PyBytes_Type) || !PyType_IS_GC(type))
        return 0;
    made = PyObject_CallFunction((PyObject *)type, "y#", "layout", (Py_ssize_t)6);
    if (made == NULL)
        return -1;
    header = PyBytes_AsString(made) - (char *)made;
    self->tail = number_of(type, "__basicsize__") - header - 1;
    known = header == (Py_ssize_t)(sizeof(PyVarObject) + sizeof(Py_hash_t)) && *hash_of(made) == -1 &&
            PyObject_Hash(made) == *hash_of(made) && number_of(type, "__itemsize__") == 1 &&
            number_of(type, "__weakrefoffset__") == 0 &&
            ((self->tail == POINTER && number_of(type, "__dictoffset__") == -POINTER) ||
             (self->tail == 0 && number_of(type, "__dictoffset__") == -1));
    Py_DECREF(made);
    return known;
}

/* Make room for `more` bytes; what has come is copied. */
static int make_room(Assembly *self, Py_ssize_t more)
{
    Py_ssize_t wanted = self->size + more, room;
    PyObject *request;
    if (wanted > MOST_DATA) {
        PyErr_NoMemory();
        return -1;
    }
    room = self->size < SURE && last_size > SURE ? SURE : last_size;
    if (room < wanted)
        room = wanted + (self->size > 0 ? wanted / 2 : 0);
    if (room < FIRST_ROOM)
        room = FIRST_ROOM;
    request = new_request(self, room);
    if (request == NULL)
        return -1;
    if (self->request != NULL) {
        memcpy(PyBytes_AsString(request), PyBytes_AsString(self->request), self->size);
        Py_DECREF(self->request);
    }
    self->request = request;
    self->room = room;
    return 0;
}

PyDoc_STRVAR(append_doc, "append(piece)\n\nAs `pktline.Assembly.append`: add the next piece.");

static PyObject *assembly_append(Assembly *self, PyObject *piece)
{
    Py_buffer view;
    if (PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (self->room - self->size < view.len && make_room(self, view.len) < 0) {
        PyBuffer_Release(&view);
        return NULL;
    }
    if (view.len > 0)
        memcpy(PyBytes_AsString(self->request) + self->size, view.buf, view.len);
    self->size += view.len;
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(join_doc, "join() -> Request\n\nAs `pktline.Assembly.join`: the request; the assembly is empty afterwards.");

static PyObject *assembly_join(Assembly *self, PyObject *unused)
{
    PyObject *request = self->request;
    Py_ssize_t size = self->size;
    if (request == NULL || self->room - size > size / 8 + 64) { /* more would be wasted than a copy costs */
        PyObject *exact = new_request(self, size);
        if (exact == NULL)
            return NULL;
        if (request != NULL) {
            memcpy(PyBytes_AsString(exact), PyBytes_AsString(request), size);
            Py_DECREF(request);
        }
        request = exact;
    }
    else
        set_size(self, request, size);
    last_size = size < MOST_TRUSTED ? size : MOST_TRUSTED;
    self->request = NULL;
    self->room = self->size = 0;
    PyObject_GC_Track(request);
    return request;
}

static int assembly_init(Assembly *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"request_type", NULL};
    PyObject *type;
    int known;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!", names, &PyType_Type, &type))
        return -1;
    if (self->request_type == NULL && (PyTypeObject *)type == known_type) {
        self->tail = known_tail;
        self->request_type = (PyTypeObject *)Py_NewRef(type);
        return 0;
    }
    known = self->request_type != NULL ? 0 : layout_is_known(self, (PyTypeObject *)type);
    if (known <= 0) {
        if (known == 0)
            PyErr_SetString(PyExc_TypeError, "the layout of this type is not the one that is known");
        return -1;
    }
    if (known_type == NULL) {
        known_type = (PyTypeObject *)Py_NewRef(type);
        known_tail = self->tail;
    }
    self->request_type = (PyTypeObject *)Py_NewRef(type);
    return 0;
}

static void assembly_dealloc(Assembly *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_XDECREF(self->request);
    Py_XDECREF((PyObject *)self->request_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef assembly_methods[] = {
    {"append", (PyCFunction)assembly_append, METH_O, append_doc},
    {"join", (PyCFunction)assembly_join, METH_NOARGS, join_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef assembly_members[] = {
    {"size", T_PYSSIZET, offsetof(Assembly, size), READONLY, "bytes that have come"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot assembly_slots[] = {
    {Py_tp_doc, "The data of one request, as it comes: see `pktline.Assembly`."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, assembly_init},
    {Py_tp_dealloc, assembly_dealloc},
    {Py_tp_methods, assembly_methods},
    {Py_tp_members, assembly_members},
    {0, NULL},
};

static PyType_Spec assembly_spec = {
    "ipcsrv.worker._assembly.CompiledAssembly", sizeof(Assembly), 0, Py_TPFLAGS_DEFAULT, assembly_slots,
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &assembly_spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, "CompiledAssembly", type);
    Py_XDECREF(type);
    return result;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "ipcsrv.worker._assembly", "The assembly of a large request, compiled.", 0, NULL,
    module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__assembly(void)
{
    return PyModuleDef_Init(&definition);
}
