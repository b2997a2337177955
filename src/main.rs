//! The `ghostserve` program. The library parses the arguments, runs the command and returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ghostserve::cli::main()
}
