//! Some of ONNX Runtime's own calls that `ort` does not pass on.
//!
//! [`run`]: one session, run by several threads at once. `ort`'s own `run` borrows the session mutably, because the allocators of
//! some execution providers are not safe to share. ONNX Runtime itself promises it for `OrtApi::Run` ("sessions are stateless so
//! you can call Run concurrently", microsoft/onnxruntime #22967, and #114, #13571), and its own test runner does so on the CPU. So
//! the lanes of a stage and of the text encoder ([`SessionOptions::lanes`](super::SessionOptions::lanes)) do on the CPU, and nowhere else. A session for
//! each lane would need no unsafe code, and the weights once more for each.
//!
//! [`run_bound`]: a run with what is bound, which `ort` borrows the session mutably for as well. Here a lock is held instead.
//! [`bind`]: binds borrowed memory. `ort`'s own `bind_input` copies it first where it may be on the device that the session wants it
//! on, by a bound session whose binding does the same: in 2.0.0-rc.15 it waits for a lock that it holds itself.
//!
//! [`share_arena`]: one arena for all sessions of the process. With an arena of its own each session keeps the most that it ever
//! used, also while others run.

#![allow(
    unsafe_code,
    reason = "ONNX Runtime's own calls, which ort does not pass on as they are wanted; Run with the thread safety that ONNX \
              Runtime promises"
)]

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};
use std::slice;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use ort::value::DynValue;

use super::binding::Input;

/// Makes the arena on the CPU that sessions take whose option `session.use_env_allocators` is set. Once a process.
pub(super) fn share_arena(environment: &Environment) -> ort::Result<()> {
    let memory = MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Arena,
        MemoryType::Default,
    )?;
    // SAFETY: both pointers are of values that live until the call returns; ONNX Runtime copies the description and locks its
    // environment. No arena configuration means the defaults.
    unsafe {
        ort::Error::result_from_status((ort::api().CreateAndRegisterAllocator)(
            environment.ptr().cast_mut(),
            memory.ptr(),
            ptr::null(),
        ))
    }
}

/// Runs the graph and returns `outputs`, in order. The values must not outlive the session. `names` are those of the
/// inputs.
pub(super) fn run(
    session: &Session,
    options: &RunOptions,
    names: &[CString],
    inputs: &[Input<'_>],
    outputs: &[CString],
) -> ort::Result<Vec<DynValue>> {
    let names: Vec<*const c_char> = names.iter().map(|name| CStr::as_ptr(name)).collect();
    let values: Vec<*const ort::sys::OrtValue> = inputs.iter().map(|input| input.value.ptr()).collect();
    if names.len() != values.len() {
        return Err(ort::Error::new("an input has no name"));
    }
    let wanted: Vec<*const c_char> = outputs.iter().map(|name| CStr::as_ptr(name)).collect();
    let mut made: Vec<*mut ort::sys::OrtValue> = vec![ptr::null_mut(); wanted.len()];
    // SAFETY: all pointers are of values that live until the call returns; names and values are of the same number, as
    // are the wanted names and the slots for what is made; a null slot asks ONNX Runtime to allocate. The session is not
    // changed through the pointer but by ONNX Runtime, which locks what runs share.
    unsafe {
        ort::Error::result_from_status((ort::api().Run)(
            session.ptr().cast_mut(),
            options.ptr(),
            names.as_ptr(),
            values.as_ptr(),
            values.len(),
            wanted.as_ptr(),
            wanted.len(),
            made.as_mut_ptr(),
        ))?;
    }
    own(session, made)
}

/// Runs the graph with what `binding`, one of this session's, holds, and returns the outputs that are bound, in order. The
/// values must not outlive the session, and nobody else may run it meanwhile.
pub(super) fn run_bound(
    session: &Session,
    options: &RunOptions,
    binding: &IoBinding,
) -> ort::Result<Vec<DynValue>> {
    let allocator = session.allocator();
    let mut values: *mut *mut ort::sys::OrtValue = ptr::null_mut();
    let mut count = 0;
    // SAFETY: all pointers are of values that live until the call returns. ONNX Runtime makes an array of `count` values with the
    // session's allocator; each is the caller's, and so is the array, which is copied before it is freed.
    let made = unsafe {
        ort::Error::result_from_status((ort::api().RunWithBinding)(
            session.ptr().cast_mut(),
            options.ptr(),
            binding.ptr(),
        ))?;
        ort::Error::result_from_status((ort::api().GetBoundOutputValues)(
            binding.ptr(),
            allocator.ptr().cast_mut(),
            &raw mut values,
            &raw mut count,
        ))?;
        if values.is_null() {
            return Err(ort::Error::new("no output is bound"));
        }
        let made = slice::from_raw_parts(values, count).to_vec();
        allocator.free(values);
        made
    };
    own(session, made)
}

/// Binds `value` as input `name`. Where the session wants it on the device that it is on, the binding refers to its memory
/// and has no copy: inputs must be cleared before a run that comes when that memory is gone.
pub(super) fn bind(binding: &mut IoBinding, name: &CStr, value: &DynValue) -> ort::Result<()> {
    // SAFETY: all pointers are of values that live until the call returns; ONNX Runtime shares its own value's ownership.
    unsafe {
        ort::Error::result_from_status((ort::api().BindInput)(
            binding.ptr().cast_mut(),
            name.as_ptr(),
            value.ptr(),
        ))
    }
}

/// Takes what a run of `session` has just made, which nothing else owns.
fn own(session: &Session, made: Vec<*mut ort::sys::OrtValue>) -> ort::Result<Vec<DynValue>> {
    made.into_iter()
        .map(|value| {
            let value = NonNull::new(value).ok_or_else(|| ort::Error::new("an output is missing"))?;
            // SAFETY: the pointer was just made by a run of this session, is owned by nothing else, and is not null.
            Ok(unsafe { DynValue::from_ptr(value, Some(session.allocator())) })
        })
        .collect()
}
