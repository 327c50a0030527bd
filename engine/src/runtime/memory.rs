//! Memory of the CPU that the process holds and does not use: in ONNX Runtime's arena, and in the C library's heap.

#![allow(
    unsafe_code,
    reason = "glibc's malloc_trim, of which no crate that is kept makes a safe call"
)]

use std::sync::OnceLock;

use ort::editor::{Graph, Model, Node, ONNX_DOMAIN, Opset};
use ort::session::{RunOptions, Session};
use ort::value::{Outlet, Shape, SymbolicDimensions, TensorElementType, ValueType};

use super::binding::Input;
use super::opening::{OpenFailure, open_model};
use super::{Provider, Runtime, RuntimeError, SessionOptions, native, one_line};

/// ONNX Runtime's run option that gives unused blocks of the named devices' arenas back to the system.
const SHRINK: &str = "memory.enable_memory_arena_shrinkage";
/// The CPU's arena, which all sessions share, as that option names it.
const CPU: &str = "cpu:0";

/// What errors call the graph below.
const NAME: &str = "the graph that releases memory";
/// Of the operator used, which has not changed since.
const OPSET: u32 = 13;

/// Gives memory that the process holds and does not use back to the system: what ONNX Runtime's arena keeps of larger runs than
/// those under way, and what was freed but the allocator keeps, such as what opening a graph took. Whoever needs it again takes
/// it anew, page by page, so this is for quiet moments. Any thread may call it at any time. Memory of devices stays.
///
/// # Errors
/// When ONNX Runtime is not loaded, or cannot run any more.
pub fn release_memory() -> Result<(), RuntimeError> {
    shrink_arena()?;
    return_freed_memory();
    Ok(())
}

/// ONNX Runtime shrinks an arena at the end of a run that says so, and by no other call: here of a graph that does nothing. The block
/// that the arena took first stays.
fn shrink_arena() -> Result<(), RuntimeError> {
    static GRAPH: OnceLock<Session> = OnceLock::new();
    let graph = match GRAPH.get() {
        Some(graph) => graph,
        None => {
            let opened = open()?;
            // Another thread may have been faster.
            GRAPH.get_or_init(|| opened)
        }
    };
    let failed = |error: ort::Error| RuntimeError::Run {
        file: NAME.to_owned(),
        reason: one_line(error.message()),
    };
    let mut options = RunOptions::new().map_err(failed)?;
    options.set(SHRINK, CPU).map_err(failed)?;
    let input: Input<'_> = super::Session::input("in", &[1], &[0.0_f32])?;
    native::run(graph, &options, &[c"in".into()], &[input], &[c"out".into()]).map_err(failed)?;
    Ok(())
}

fn open() -> Result<Session, RuntimeError> {
    let refused = |reason: String| RuntimeError::Open {
        file: NAME.into(),
        reason,
    };
    let options = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    let model = model().map_err(|error| refused(one_line(error.message())))?;
    open_model(Runtime::current()?, model, Provider::Cpu, &options).map_err(|failure| match failure {
        OpenFailure::Provider(_, reason) | OpenFailure::Graph(reason) => refused(reason),
    })
}

/// One number in, the same out.
fn model() -> ort::Result<Model> {
    let number = || ValueType::Tensor {
        ty: TensorElementType::Float32,
        shape: Shape::new([1]),
        dimension_symbols: SymbolicDimensions::empty(1),
    };
    let mut graph = Graph::new()?;
    graph.set_inputs([Outlet::new("in", number())])?;
    graph.set_outputs([Outlet::new("out", number())])?;
    graph.add_node(Node::new("Identity", ONNX_DOMAIN, "same", ["in"], ["out"], [])?)?;
    let mut model = Model::new([Opset::new(ONNX_DOMAIN, OPSET)?])?;
    model.set_graph(graph)?;
    Ok(model)
}

/// With glibc; other allocators have rules of their own, and nothing happens.
fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it takes no memory of ours, locks what it looks at, and may be called by any thread at any time.
        unsafe {
            malloc_trim(0);
        }
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::fs;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// One test at a time: each looks at the whole process.
    static PROCESS: Mutex<()> = Mutex::new(());

    /// Pages of the process that are in memory.
    fn resident_pages() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_below_what_is_in_use_goes_back() {
        let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        // Below the size that is mapped by itself, and with something in use behind it.
        let freed: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 65_536]).collect();
        let in_use = vec![1_u8; 65_536];
        drop(freed);
        let before = resident_pages();
        return_freed_memory();
        let after = resident_pages();
        assert!(after + 16_000 < before, "{before} pages before, {after} after");
        drop(in_use);
    }

    /// A graph that spreads one number over 128 MiB of the arena, and gives the greatest.
    fn wasteful() -> ort::Result<Model> {
        let tensor = |ty| ValueType::Tensor {
            ty,
            shape: Shape::new([1]),
            dimension_symbols: SymbolicDimensions::empty(1),
        };
        let mut graph = Graph::new()?;
        graph.set_inputs([
            Outlet::new("in", tensor(TensorElementType::Float32)),
            Outlet::new("size", tensor(TensorElementType::Int64)),
        ])?;
        graph.set_outputs([Outlet::new("out", tensor(TensorElementType::Float32))])?;
        let nodes = [
            ("Expand", vec!["in", "size"], "many"),
            ("ReduceMax", vec!["many"], "out"),
        ];
        for (operator, inputs, output) in nodes {
            graph.add_node(Node::new(operator, ONNX_DOMAIN, operator, inputs, [output], [])?)?;
        }
        let mut model = Model::new([Opset::new(ONNX_DOMAIN, OPSET)?])?;
        model.set_graph(graph)?;
        Ok(model)
    }

    #[test]
    fn what_the_arena_keeps_of_a_run_goes_back_and_graphs_run_on() {
        let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, runtime) = Runtime::of_the_workspace();
        let options = SessionOptions::default();
        let model = wasteful().unwrap();
        let Ok(graph) = open_model(runtime, model, Provider::Cpu, &options) else {
            panic!("the graph does not open");
        };
        let run = |size: i64| {
            let size = [size];
            let inputs = [
                super::super::Session::input("in", &[1], &[7.0_f32]).unwrap(),
                super::super::Session::input("size", &[1], &size).unwrap(),
            ];
            let names = [c"in".into(), c"size".into()];
            let options = RunOptions::new().unwrap();
            let made = native::run(&graph, &options, &names, &inputs, &[c"out".into()]).unwrap();
            made[0].try_extract_tensor::<f32>().unwrap().1.to_vec()
        };
        // What an arena took first it keeps for ever: here little, as where a bundle is opened.
        assert_eq!(run(1), [7.0]);
        for _ in 0..2 {
            assert_eq!(run(32 << 20), [7.0]);
            let before = resident_pages();
            release_memory().unwrap();
            let after = resident_pages();
            assert!(after + 24_000 < before, "{before} pages before, {after} after");
        }
    }
}
