//! Which provider runs, and what is said when one cannot be had. The library is the CPU wheel's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod support;

use std::path::Path;

use muse_engine::runtime::{ArenaGrowth, ConvolutionSearch, CudaOptions, OpenVinoOptions, OpenVinoPrecision};
use muse_engine::stage::OnnxStage;
use muse_engine::{Provider, Runtime, RuntimeError, SessionOptions, Stage, StageError};
use support::{bundle, library, options};

fn open(providers: &[Provider]) -> Result<OnnxStage, StageError> {
    let options = SessionOptions {
        providers: providers.to_vec(),
        ..options()
    };
    OnnxStage::open(&bundle("tiny"), Stage::Base, &options)
}

#[test]
fn a_provider_that_cannot_be_had_stops_with_one_line_that_says_why_and_what_to_do() {
    for (provider, wheel) in [
        (Provider::Cuda, "onnxruntime-gpu"),
        (Provider::TensorRt, "onnxruntime-gpu"),
        (Provider::OpenVino, "onnxruntime-openvino"),
    ] {
        let error = open(&[provider])
            .expect_err("the CPU wheel has no other provider")
            .to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(
            error.starts_with(&format!("provider {provider} cannot be used: ")),
            "{error}"
        );
        for part in [
            wheel,
            "runtime.providers",
            "this build of ONNX Runtime does not have it",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}

#[test]
fn a_list_that_ends_in_cpu_runs_on_the_cpu_and_says_so() {
    assert_eq!(
        open(&[Provider::Cuda, Provider::Cpu]).unwrap().provider(),
        Provider::Cpu
    );
    assert_eq!(
        open(&[Provider::TensorRt, Provider::Cuda, Provider::Cpu])
            .unwrap()
            .provider(),
        Provider::Cpu
    );
    assert_eq!(open(&[Provider::Cpu]).unwrap().provider(), Provider::Cpu);
    assert_eq!(
        open(&[Provider::Cpu, Provider::Cuda]).unwrap().provider(),
        Provider::Cpu
    );
}

#[test]
fn an_empty_list_of_providers_is_refused() {
    let error = open(&[]).unwrap_err();
    assert!(
        matches!(error, StageError::Runtime(RuntimeError::NoProvider)),
        "{error}"
    );
}

#[test]
fn a_library_that_is_not_there_or_no_library_is_one_line_that_says_what_to_do() {
    for library in [
        Path::new("/nowhere/libonnxruntime.so"),
        Path::new(env!("CARGO_MANIFEST_DIR")),
    ] {
        // In one process with the other tests the library may be loaded already, which is another error.
        let error = Runtime::initialise(Some(library))
            .err()
            .expect("it is no library")
            .to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(
            error.contains("scripts/fetch-deps") || error.contains("already loaded"),
            "{error}"
        );
    }
}

#[test]
fn loading_again_gives_the_same_runtime() {
    let first = Runtime::initialise(Some(&library())).unwrap();
    let second = Runtime::initialise(Some(&library())).unwrap();
    assert!(std::ptr::eq(first, second));
    assert!(std::ptr::eq(first, Runtime::initialise(None).unwrap()));
}

#[test]
fn options_are_read_from_configuration_and_unknown_keys_refused() {
    let options: SessionOptions = toml::from_str("providers = [\"cuda\", \"cpu\"]\nthreads = 2").unwrap();
    assert_eq!(options.providers, [Provider::Cuda, Provider::Cpu]);
    assert_eq!(options.threads, 2);
    assert_eq!(options.spin_us, SessionOptions::default().spin_us);
    assert_eq!(options.cuda, CudaOptions::default());
    let text = "[cuda]\narena_bytes = 1000\narena_growth = \"doubling\"\nconvolution_search = \"exhaustive\"\ntf32 = true";
    let expected = CudaOptions {
        arena_bytes: 1000,
        arena_growth: ArenaGrowth::Doubling,
        convolution_search: ConvolutionSearch::Exhaustive,
        tf32: true,
    };
    assert_eq!(toml::from_str::<SessionOptions>(text).unwrap().cuda, expected);
    let text = "[openvino]\ndevice = \"GPU\"\nprecision = \"bf16\"";
    let expected = OpenVinoOptions {
        device: "GPU".to_owned(),
        precision: OpenVinoPrecision::Bf16,
    };
    assert_eq!(toml::from_str::<SessionOptions>(text).unwrap().openvino, expected);
    for wrong in [
        "provider = [\"cpu\"]",
        "providers = [\"gpu\"]",
        "[cuda]\ngraphs = true",
        "[cuda]\narena_growth = \"fast\"",
        "[openvino]\nprecision = \"int8\"",
    ] {
        toml::from_str::<SessionOptions>(wrong).expect_err(wrong);
    }
}
