//! The text of `ghostserve --version`: what to state in a report of a problem.

use std::path::Path;

use crate::runtime::{LIBRARY_ENV, Runtime};
use crate::telemetry::BUILD_REVISION;

/// Version, commit, ONNX Runtime's version and platform, one on each line. Loads ONNX Runtime.
pub(super) fn long_version() -> String {
    let library = std::env::var_os(LIBRARY_ENV).filter(|path| !path.is_empty());
    let runtime = Runtime::load(library.as_deref().map(Path::new));
    let runtime = match &runtime {
        Ok(runtime) => runtime.version().to_owned(),
        Err(error) => error.to_string(),
    };
    format!(
        "{}\ncommit        {BUILD_REVISION}\nONNX Runtime  {runtime}\nplatform      {}-{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
    )
}
