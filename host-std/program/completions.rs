//! `blk-host completions`: a shell's script, from the definition of the arguments.

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::cli::{Args, CompletionsArgs};
use crate::output;

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "blk-host", &mut script);
    output::text_of(format_args!("{}", String::from_utf8_lossy(&script)))?;
    Ok(ExitCode::SUCCESS)
}
