//! Confinement, from the inside: this program runs itself again, confines itself as a server does,
//! and tries in each role what is forbidden and what is needed.
//!
//! Each attempt has a process of its own, as some of them end it. It is the program of the test
//! itself, which looks at its environment before it starts a thread: hence no harness.

mod attempt;
mod child;
mod forbidden;
mod needed;
mod start;
mod threads;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(attempt) = attempt::Attempt::of_this_process() {
        return child::run(&attempt);
    }
    let arguments = Arguments::from_args();
    let trials: Vec<Trial> = [forbidden::trials(), needed::trials(), threads::trials(), start::trials()]
        .into_iter()
        .flatten()
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
