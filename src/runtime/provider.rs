//! The backends of a session: ONNX Runtime's own CPU provider, or OpenVINO if the library has it, and their precision.

use std::fmt::{self, Display, Formatter};

use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CPU, ExecutionProvider, ExecutionProviderDispatch, OpenVINO};
use ort::session::builder::{BuilderResult, SessionBuilder};
use schemars::JsonSchema;
use serde::Serialize;

use super::RuntimeError;

/// An execution provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime's own provider, with our operators in the blocked form.
    #[default]
    Cpu,
    /// OpenVINO on the CPU. Needs an ONNX Runtime library that is built with it.
    #[value(name = "openvino")]
    OpenVino,
}

/// The number type that a network is computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    F32,
    /// bfloat16: single precision without the lower half of its bits.
    Bf16,
}

impl Display for Provider {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
        })
    }
}

impl Display for Precision {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A provider and the precision in which it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The execution provider.
    pub provider: Provider,
    /// The number type of the computation.
    pub precision: Precision,
}

/// A precision that the provider does not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--precision bf16 needs --provider openvino: ONNX Runtime's own provider (--provider cpu) computes in f32 alone"
)]
pub struct NoSuchPrecision;

impl Backend {
    /// Checks that the provider supports the precision.
    ///
    /// # Errors
    /// The provider does not support it.
    pub fn check(self) -> Result<(), NoSuchPrecision> {
        match (self.provider, self.precision) {
            (Provider::Cpu, Precision::Bf16) => Err(NoSuchPrecision),
            _ => Ok(()),
        }
    }

    /// Whether opening a session takes seconds rather than tens of milliseconds.
    #[must_use]
    pub fn compiles_sessions(self) -> bool {
        self.provider == Provider::OpenVino
    }

    /// Checks that the loaded library has the provider.
    pub(super) fn check_library(self) -> Result<(), RuntimeError> {
        match self.provider {
            Provider::OpenVino if !OpenVINO::is_available().unwrap_or(false) => Err(RuntimeError::NoOpenVino),
            _ => Ok(()),
        }
    }

    /// Configures a session to use only this provider, on the given number of threads.
    // The builder is part of its errors, which makes them large. The caller converts them.
    #[allow(clippy::result_large_err)]
    pub(super) fn configure(self, builder: SessionBuilder, threads: usize) -> BuilderResult {
        let provider = self.registration(threads);
        match self.provider {
            Provider::Cpu => builder.with_execution_providers([provider])?.with_intra_threads(threads),
            // Without this, nodes that OpenVINO does not accept would silently run on the other provider; now they
            // are an error. The runtime's own threads would have nothing to do.
            Provider::OpenVino => {
                builder.with_execution_providers([provider])?.with_disable_cpu_fallback()?.with_intra_threads(1)
            }
        }
    }

    /// The advice for a user whose model this backend computes differently.
    pub(super) fn remedy(self) -> &'static str {
        match self.precision {
            Precision::F32 => "`--provider cpu` is the way out",
            Precision::Bf16 => "`--precision f32` is the way out",
        }
    }

    fn registration(self, threads: usize) -> ExecutionProviderDispatch {
        match self.provider {
            Provider::Cpu => CPU::default().with_arena_allocator(true).build(),
            Provider::OpenVino => OpenVINO::default()
                .with_device_type("CPU")
                .with_arbitrary_config("load_config", self.openvino_config(threads))
                .build(),
        }
        .error_on_failure()
    }

    /// OpenVINO's own settings, which the provider takes as JSON.
    fn openvino_config(self, threads: usize) -> String {
        // The precision is set for f32, too: by default OpenVINO chooses it by processor.
        // Sessions do not know of each other: if threads were pinned, two sessions might share a core.
        let cpu = serde_json::json!({
            "INFERENCE_PRECISION_HINT": self.precision.to_string(),
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": "NO",
        });
        serde_json::json!({ "CPU": cpu }).to_string()
    }

    /// Whether the processor has instructions for the precision. Without them, the precision is slow or not used at
    /// all.
    pub(super) fn is_native(self) -> bool {
        match self.precision {
            Precision::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 => std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Precision::Bf16 => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn command_line_names_equal_the_names_in_the_plan() {
        for (typed, provider) in [("cpu", Provider::Cpu), ("openvino", Provider::OpenVino)] {
            assert_eq!(Provider::from_str(typed, false), Ok(provider));
            assert_eq!(serde_json::to_value(provider).unwrap(), typed);
            assert_eq!(provider.to_string(), typed);
        }
        for (typed, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
            assert_eq!(Precision::from_str(typed, false), Ok(precision));
            assert_eq!(serde_json::to_value(precision).unwrap(), typed);
            assert_eq!(precision.to_string(), typed);
        }
        assert!(Precision::from_str("int8", false).is_err());
    }

    #[test]
    fn only_openvino_supports_bf16() {
        for provider in [Provider::Cpu, Provider::OpenVino] {
            assert_eq!(Backend { provider, precision: Precision::F32 }.check(), Ok(()));
        }
        assert_eq!(Backend { provider: Provider::OpenVino, precision: Precision::Bf16 }.check(), Ok(()));
        assert_eq!(Backend { provider: Provider::Cpu, precision: Precision::Bf16 }.check(), Err(NoSuchPrecision));
    }

    #[test]
    fn the_openvino_config_sets_precision_and_threads() {
        for (precision, hint) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
            let config = Backend { provider: Provider::OpenVino, precision }.openvino_config(3);
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(config["CPU"]["INFERENCE_PRECISION_HINT"], hint);
            assert_eq!(config["CPU"]["INFERENCE_NUM_THREADS"], 3);
            assert_eq!(config["CPU"]["NUM_STREAMS"], 1);
            assert_eq!(config["CPU"]["ENABLE_CPU_PINNING"], "NO");
        }
    }
}
