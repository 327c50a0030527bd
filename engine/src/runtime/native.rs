//! Two of ONNX Runtime's own calls that `ort` does not pass on.
//!
//! [`run`]: one session, run by several threads at once. `ort`'s own `run` borrows the session mutably, because the allocators of
//! some execution providers are not safe to share. ONNX Runtime itself promises it for `OrtApi::Run` ("sessions are stateless so
//! you can call Run concurrently", microsoft/onnxruntime #22967, and #114, #13571), and its own test runner does so on the CPU. So
//! the lanes of a stage and of the text encoder ([`SessionOptions::lanes`](super::SessionOptions::lanes)) do on the CPU, and nowhere else. A session for
//! each lane would need no unsafe code, and the weights once more for each.
//!
//! [`share_arena`]: one arena for all sessions of the process. With an arena of its own each session keeps the most that it ever
//! used, also while others run.

#![allow(
    unsafe_code,
    reason = "ONNX Runtime's own calls, which ort does not pass on; Run with the thread safety that ONNX Runtime promises"
)]

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::DynValue;

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

/// Runs the graph and returns `outputs`, in order. The values must not outlive the session.
pub(super) fn run(
    session: &Session,
    options: &RunOptions,
    inputs: &[(CString, SessionInputValue<'_>)],
    outputs: &[CString],
) -> ort::Result<Vec<DynValue>> {
    let names: Vec<*const c_char> = inputs.iter().map(|(name, _)| name.as_ptr()).collect();
    let values: Vec<*const ort::sys::OrtValue> = inputs.iter().map(|(_, value)| value.ptr()).collect();
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
    made.into_iter()
        .map(|value| {
            let value = NonNull::new(value).ok_or_else(|| ort::Error::new("an output is missing"))?;
            // SAFETY: the pointer was just made by a run of this session, is owned by nothing else, and is not null.
            Ok(unsafe { DynValue::from_ptr(value, Some(session.allocator())) })
        })
        .collect()
}
