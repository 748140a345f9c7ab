//! A virtual machine as a process.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::console::Console;

/// A virtual machine that runs. Dropped, it is killed, with all of its processes: as if its power were cut.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    /// What is on its standard input and output.
    pub console: Console,
}

impl Machine {
    /// Starts it. What it says on standard error goes to the new file `log`.
    ///
    /// # Errors
    /// The kernel's: there is no such program, or one that does not run here.
    pub fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        command
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs))
            .stderr(File::create(log)?);
        let console = Console::new(ours)?;
        // A group of its own: User-Mode Linux is many processes.
        Ok(Self { child: command.process_group(0).spawn()?, console })
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // Its group is gone if it is.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
