//! DLPack: a batch's fields as views that torch, numpy and others take without a copy.
//!
//! The structures are those of dlpack.h, version 1.0 (<https://github.com/dmlc/dlpack>). Slots are exported as plain
//! CPU memory (kDLCPU), since torch refuses kDLCUDAHost. The deleter drops a clone of the batch's [`Memory`], hence
//! gives the slot back when the last view is gone; it never calls Python, so it may run at interpreter exit or on any
//! thread.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr;

use fuelrail_loader::client::Memory;
use fuelrail_loader::layout::{Element, Field};
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;

const CPU: i32 = 1;

#[repr(C)]
struct DlDevice {
    device_type: i32,
    device_id: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, the unversioned form (capsule "dltensor").
#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// `DLManagedTensorVersioned` (capsule "dltensor_versioned").
#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

/// What `context` points to: everything the tensor's pointers need to stay valid.
struct Context {
    _memory: Memory,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

const NAME: &CStr = c"dltensor";
const NAME_VERSIONED: &CStr = c"dltensor_versioned";

/// One field of a batch, rows first; images have shape (rows, C, H, W) and strides that say which layout lies behind.
#[pyclass(module = "fuelrail._native", frozen)]
#[derive(Clone)]
pub struct Tensor {
    memory: Memory,
    field: Field,
    rows: u32,
}

impl Tensor {
    /// The first `rows` rows of a field.
    pub fn new(memory: Memory, field: Field, rows: u32) -> Self {
        Self { memory, field, rows }
    }

    /// Where its rows begin, and how many bytes they are.
    pub fn bytes(&self) -> (*const u8, usize) {
        let bytes = self.rows as usize * self.row_bytes();
        (self.memory.address(&self.field, bytes), bytes)
    }

    /// The same as a copy.
    pub fn owned(&self) -> Self {
        let mut bytes = vec![0; self.rows as usize * self.row_bytes()];
        self.memory.copy_to(&self.field, 0, &mut bytes);
        Self { memory: Memory::of(&bytes), field: Field { offset: 0, ..self.field.clone() }, rows: self.rows }
    }

    /// The same without its rows.
    pub fn none(&self) -> Self {
        Self { memory: Memory::none(), field: Field { offset: 0, ..self.field.clone() }, rows: 0 }
    }

    /// How many rows.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.field.row_bytes as usize
    }

    /// The first bytes of a row, no more than it has.
    pub fn row(&self, row: usize, bytes: usize) -> Vec<u8> {
        let mut copy = vec![0; bytes.min(self.row_bytes())];
        self.memory.copy_to(&self.field, row * self.row_bytes(), &mut copy);
        copy
    }

    fn dtype(&self) -> DlDataType {
        use Element::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        // As dlpack.h numbers them.
        let code = match self.field.dtype {
            I8 | I16 | I32 | I64 => 0,
            U8 | U16 | U32 | U64 => 1,
            F16 | F32 | F64 => 2,
            Bf16 => 4,
            Bool => 6,
        };
        DlDataType { code, bits: 8 * self.field.dtype.size() as u8, lanes: 1 }
    }

    /// A tensor whose pointers are valid as long as the boxed context lives.
    fn export(&self) -> (DlTensor, Box<Context>) {
        let dtype = self.dtype();
        let row_elements = self.field.row_bytes as i64 / i64::from(dtype.bits / 8);
        let with_rows = |rows: i64, rest: &[u64]| -> Vec<i64> {
            std::iter::once(rows).chain(rest.iter().map(|&extent| extent as i64)).collect()
        };
        let mut context = Box::new(Context {
            _memory: self.memory.clone(),
            shape: with_rows(i64::from(self.rows), &self.field.shape),
            strides: with_rows(row_elements, &self.field.strides),
        });
        let bytes = self.rows as usize * self.field.row_bytes as usize;
        let tensor = DlTensor {
            data: self.memory.address(&self.field, bytes).cast(),
            device: DlDevice { device_type: CPU, device_id: 0 },
            ndim: context.shape.len() as i32,
            dtype,
            shape: context.shape.as_mut_ptr(),
            strides: context.strides.as_mut_ptr(),
            byte_offset: 0,
        };
        (tensor, context)
    }
}

#[pymethods]
impl Tensor {
    /// Whether it is a view of shared memory (else an owned copy).
    #[getter]
    fn is_view(&self) -> bool {
        self.memory.is_view()
    }

    /// (kDLCPU, 0).
    fn __dlpack_device__(&self) -> (i32, i32) {
        (CPU, 0)
    }

    /// A capsule as the array API's `__dlpack__` asks for: versioned from max_version (1, 0) on.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // CPU memory has no stream to order against.
        let _ = stream;
        if dl_device.is_some_and(|device| device != (CPU, 0)) {
            return Err(PyBufferError::new_err(
                "a batch is in CPU memory; move it with .to(device) afterwards",
            ));
        }
        if copy == Some(true) {
            return Err(PyBufferError::new_err("a batch is exported as a view; clone the result for a copy"));
        }
        let (tensor, context) = self.export();
        let context = Box::into_raw(context).cast();
        if max_version.is_some_and(|version| version >= (1, 0)) {
            let managed = ManagedVersioned {
                major: 1,
                minor: 0,
                context,
                deleter: Some(delete_versioned),
                flags: 0,
                tensor,
            };
            let managed = Box::into_raw(Box::new(managed));
            // SAFETY: `managed` is a fresh box whose deleter frees it; ownership passes to the capsule.
            unsafe {
                capsule(py, managed.cast(), NAME_VERSIONED, destroy_versioned, || delete_versioned(managed))
            }
        } else {
            let managed = Box::into_raw(Box::new(Managed { tensor, context, deleter: Some(delete) }));
            // SAFETY: as above.
            unsafe { capsule(py, managed.cast(), NAME, destroy, || delete(managed)) }
        }
    }
}

/// # Safety
/// `pointer` is owned by the caller; it passes to the capsule, or to `undo` when no capsule can be had.
unsafe fn capsule<'py>(
    py: Python<'py>,
    pointer: *mut c_void,
    name: &'static CStr,
    destructor: unsafe extern "C" fn(*mut ffi::PyObject),
    undo: impl FnOnce(),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: `pointer` is not null and `name` lives forever, as PyCapsule_New asks; a null result is an error that was
    // set, and anything else is a new reference.
    let object = unsafe { ffi::PyCapsule_New(pointer, name.as_ptr(), Some(destructor)) };
    if object.is_null() {
        undo();
        return Err(PyErr::take(py).unwrap_or_else(|| PyMemoryError::new_err("no capsule can be had")));
    }
    // SAFETY: a new reference, just made.
    Ok(unsafe { Bound::from_owned_ptr(py, object) })
}

/// Deleter of the unversioned form.
///
/// # Safety
/// `managed` came from `Tensor::__dlpack__` and is not used again; DLPack has its consumer call this exactly once.
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: both were made by Box::into_raw in `__dlpack__`, and this is the only call for them.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// Deleter of the versioned form.
///
/// # Safety
/// As for [`delete`].
unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: as in `delete`.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// Destructor of a capsule that nobody took (a consumer renames the capsule it takes).
///
/// # Safety
/// Called by Python with a capsule made in `__dlpack__`.
unsafe extern "C" fn destroy(object: *mut ffi::PyObject) {
    // SAFETY: the name tells whether the pointer is still ours; only then is it fetched and deleted, once.
    unsafe {
        if ffi::PyCapsule_IsValid(object, NAME.as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(object, NAME.as_ptr());
            if !ptr::eq(managed, ptr::null()) {
                delete(managed.cast());
            }
        }
    }
}

/// Destructor of a versioned capsule that nobody took.
///
/// # Safety
/// As for [`destroy`].
unsafe extern "C" fn destroy_versioned(object: *mut ffi::PyObject) {
    // SAFETY: as in `destroy`.
    unsafe {
        if ffi::PyCapsule_IsValid(object, NAME_VERSIONED.as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(object, NAME_VERSIONED.as_ptr());
            if !ptr::eq(managed, ptr::null()) {
                delete_versioned(managed.cast());
            }
        }
    }
}
