//! The ONNX Runtime library: finds it, loads it once per process, reads its version.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::logging::LogLevel;

use super::{Runtime, RuntimeError};

const LIBRARY_FILE: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

impl Runtime {
    /// Loads the library at `path`, which is a file or a folder that holds it. Without a path, looks for the library
    /// beside the executable, in `lib/ghostserve` or `lib` beside or above it, and where the system's loader looks.
    ///
    /// # Errors
    /// [`RuntimeError::Library`], also if a runtime has been loaded in this process before.
    pub fn load(path: Option<&Path>) -> Result<Self, RuntimeError> {
        let path = path.map_or_else(find_library, |p| if p.is_dir() { p.join(LIBRARY_FILE) } else { p.to_owned() });
        // A relative path is relative to the user's working directory. The loader would look elsewhere first.
        let path = if path.is_file() { std::path::absolute(&path).unwrap_or(path) } else { path };
        let error = |reason: String| RuntimeError::Library { path: path.display().to_string(), reason };
        // `ort` does not say why the library cannot be loaded. Loading it again does.
        let environment = ort::init_from(&path)
            .map_err(|e| error(library_version(&path).err().unwrap_or_else(|| e.to_string())))?
            .with_name("ghostserve")
            .with_telemetry(false)
            .with_logger(Arc::new(|level, category: &str, _id: &str, _location: &str, message: &str| match level {
                // Telemetry is off, but on a read-only root file system the library still reports a problem with it.
                _ if message.contains("telemetry device ID") => tracing::debug!(category, "ONNX Runtime: {message}"),
                LogLevel::Fatal | LogLevel::Error => tracing::error!(category, "ONNX Runtime: {message}"),
                LogLevel::Warning => tracing::warn!(category, "ONNX Runtime: {message}"),
                LogLevel::Info | LogLevel::Verbose => tracing::debug!(category, "ONNX Runtime: {message}"),
            }))
            .build()
            .map_err(|e| error(e.to_string()))?;
        environment.set_log_level(LogLevel::Error);
        let version = library_version(&path).map_err(error)?;
        Ok(Self { environment, version, opening: Arc::default() })
    }
}

/// The version that the library at `path` reports. `ort` reads it too, but does not expose it.
#[allow(unsafe_code)]
fn library_version(path: &Path) -> Result<String, String> {
    // SAFETY: `ort` has loaded the library before, or has tried to. Loading it again only raises its reference count,
    // or fails in the same way.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
        let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        reason.trim_start_matches(&format!("{}: ", path.display())).to_owned()
    })?;
    // SAFETY: every ONNX Runtime library exports a function of this name and type.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|e| e.to_string())?;
    // SAFETY: the function returns a pointer to a static table, whose `GetVersionString` returns a static string.
    let version = unsafe { base().as_ref().map(|base| CStr::from_ptr((base.GetVersionString)())) };
    version.map(|v| v.to_string_lossy().into_owned()).ok_or_else(|| "it has no API".to_owned())
}

fn find_library() -> PathBuf {
    let program = std::env::current_exe().and_then(|exe| exe.canonicalize()).unwrap_or_default();
    candidates(&program).find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(LIBRARY_FILE))
}

/// Where the library may be for a program at `program`, the likeliest place first.
fn candidates(program: &Path) -> impl Iterator<Item = PathBuf> {
    // An installed program is in `PREFIX/bin`, its library in `PREFIX/lib/ghostserve`. Three folders above the program
    // is a checkout with `target/release`.
    let folders = program.ancestors().skip(1).take(3);
    folders.flat_map(|folder| {
        ["", "lib/ghostserve", "lib", ".runtime/onnxruntime"].map(|sub| folder.join(sub).join(LIBRARY_FILE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_relative_to_the_program() {
        for (program, folder) in [
            ("/opt/ghostserve/ghostserve", "/opt/ghostserve"),
            ("/opt/ghostserve-0.2.0/bin/ghostserve", "/opt/ghostserve-0.2.0/lib/ghostserve"),
            ("/usr/bin/ghostserve", "/usr/lib/ghostserve"),
            ("/srv/app/bin/ghostserve", "/srv/app/lib"),
            ("/src/target/release/ghostserve", "/src/.runtime/onnxruntime"),
        ] {
            let expected = Path::new(folder).join(LIBRARY_FILE);
            assert!(candidates(Path::new(program)).any(|path| path == expected), "{program}: {folder}");
        }
        // The library that was installed with the program comes before one of another package.
        let found: Vec<_> = candidates(Path::new("/usr/bin/ghostserve")).collect();
        let position = |folder: &str| found.iter().position(|path| *path == Path::new(folder).join(LIBRARY_FILE));
        assert!(position("/usr/lib/ghostserve") < position("/usr/lib"));
    }
}
