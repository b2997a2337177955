//! `ghostserve completions` and `ghostserve man`: files for packages, made of the declarations of the command line.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

/// Print a shell's completions of this command line.
///
/// For bash: ghostserve completions bash > ~/.local/share/bash-completion/completions/ghostserve
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Print the manual page, or write one page per subcommand.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write ghostserve.1 and a page for each subcommand to this folder, which is made if it is missing.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl CompletionsArgs {
    pub(super) fn run(self, mut command: Command) -> anyhow::Result<ExitCode> {
        let name = command.get_name().to_owned();
        // The generator panics if it cannot write, so it writes to memory.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        stdout().lock().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ManArgs {
    pub(super) fn run(self, command: Command) -> anyhow::Result<ExitCode> {
        match self.dir {
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page)?;
                stdout().lock().write_all(&page)?;
            }
            Some(folder) => {
                let error = || format!("cannot write the pages to {}", folder.display());
                std::fs::create_dir_all(&folder).with_context(error)?;
                clap_mangen::generate_to(command, &folder).with_context(error)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
