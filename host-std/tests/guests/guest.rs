//! A booted kernel whose shell takes commands.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::console::{Console, Silence};
pub(crate) use crate::machine::{Boot, Front, Machine};

/// A guest whose shell takes commands. It ends with its owner.
pub(crate) struct Guest {
    child: Child,
    console: Console,
    folder: TempDir,
    name: String,
    /// What ends it.
    off: &'static str,
}

/// What a command printed, and how it ended.
pub(crate) struct Output {
    pub(crate) lines: Vec<String>,
    pub(crate) status: i32,
}

impl Output {
    pub(crate) fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// For a command that is quick on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// What ends a guest that has a switch for its power.
pub(crate) const OFF: &str = "exec poweroff -f";

impl Guest {
    /// Boots, and waits for the shell and for the disk.
    pub(crate) fn boot(boot: &Boot<'_>) -> Self {
        Self::start_by(boot, |folder| boot.command(folder))
    }

    /// The same, by a command that is made for the guest's folder.
    pub(crate) fn start_by(boot: &Boot<'_>, command: impl FnOnce(&Path) -> Command) -> Self {
        let name = format!("{} on {}", boot.machine.name(), boot.front.name());
        // Without ACPI there is no switch, but a reset ends the emulator too.
        let off = if boot.arguments.contains("acpi=off") { "exec reboot -f" } else { OFF };
        let mut guest = Self::without_disk(name, off, command);
        guest.await_disk(boot.front);
        guest
    }

    /// A guest that none of our disks is attached to.
    pub(crate) fn without_disk(
        name: String,
        off: &'static str,
        command: impl FnOnce(&Path) -> Command,
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("guest").tempdir().expect("a temporary folder");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let theirs = OwnedFd::from(theirs);
        let log = File::create(folder.path().join("log")).expect("a log");
        let mut command = command(folder.path());
        command.stdin(Stdio::from(theirs.try_clone().expect("a descriptor"))).stdout(Stdio::from(theirs));
        // A group of its own: User-Mode Linux is many processes.
        let child = command.stderr(log).process_group(0).spawn().expect("the guest starts");
        let mut guest = Self { child, console: Console::new(ours), folder, name, off };
        guest.ready();
        guest
    }

    /// Waits until the disk is there: SCSI is scanned in the background.
    pub(crate) fn await_disk(&mut self, front: Front) {
        let disk = front.disk();
        self.sh(&format!("n=0; until test -b /dev/{disk} || test $n = 100; do sleep 0.1; n=$((n+1)); done; test -b /dev/{disk}"));
    }

    /// Waits until the shell is there, at first or after a reboot.
    pub(crate) fn ready(&mut self) {
        let deadline = Instant::now() + SOON;
        loop {
            let line = self.expect(deadline, "boot");
            assert!(!line.starts_with("no module"), "{}: {line}", self.name);
            if line == "=READY" {
                return;
            }
        }
    }

    fn expect(&mut self, deadline: Instant, what: &str) -> String {
        match self.console.line(deadline) {
            Ok(line) => line,
            Err(silence) => self.fail(&format!("{what}: {silence:?}")),
        }
    }

    /// Runs a command. `heard` is given each line at once, and may answer it.
    pub(crate) fn follow(
        &mut self,
        command: &str,
        time: Duration,
        mut heard: impl FnMut(&str) -> Option<&'static str>,
    ) -> Output {
        let deadline = Instant::now() + time;
        self.start(command);
        let mut lines = Vec::new();
        loop {
            let line = self.expect(deadline, command);
            if let Some(status) = line.strip_prefix("=END ") {
                return Output { lines, status: status.parse().expect("a status") };
            }
            if let Some(answer) = heard(&line)
                && let Err(error) = self.console.send(answer)
            {
                self.fail(&format!("{command}: {error}"));
            }
            lines.push(line);
        }
    }

    /// Starts a command; [`Self::finish`] or [`Self::silent`] goes on.
    pub(crate) fn start(&mut self, command: &str) {
        if let Err(error) = self.console.send(command) {
            self.fail(&format!("{command}: {error}"));
        }
    }

    /// The end of a command that was started.
    pub(crate) fn finish(&mut self, time: Duration) -> Output {
        let deadline = Instant::now() + time;
        let mut lines = Vec::new();
        loop {
            let line = self.expect(deadline, "the command under way");
            match line.strip_prefix("=END ") {
                Some(status) => return Output { lines, status: status.parse().expect("a status") },
                None => lines.push(line),
            }
        }
    }

    /// Whether the guest says nothing for so long.
    pub(crate) fn silent(&mut self, time: Duration) -> bool {
        match self.console.line(Instant::now() + time) {
            Err(Silence::Late) => true,
            Err(Silence::Gone) => self.fail("ended"),
            Ok(_) => false,
        }
    }

    pub(crate) fn run(&mut self, command: &str) -> Output {
        self.follow(command, SOON, |_| None)
    }

    /// Runs a command that has to succeed, and returns what it printed.
    pub(crate) fn sh(&mut self, command: &str) -> String {
        self.sh_within(command, SOON)
    }

    pub(crate) fn sh_within(&mut self, command: &str, time: Duration) -> String {
        let output = self.follow(command, time, |_| None);
        if output.status != 0 {
            self.fail(&format!("{command}: status {}", output.status));
        }
        output.text()
    }

    /// The content of a file of one line.
    pub(crate) fn cat(&mut self, path: &str) -> String {
        self.sh(&format!("cat {path}")).trim().to_owned()
    }

    /// What the kernel has to say.
    pub(crate) fn kernel_log(&mut self) -> String {
        self.sh("dmesg")
    }

    /// Powers off, and waits for the end.
    pub(crate) fn power_off(mut self) {
        self.start(self.off);
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child") {
                // User-Mode Linux may abort on its way out, now and then, after its kernel has halted.
                let ended = status.success() || self.log("log").contains("reboot: System halted");
                assert!(ended, "{}: ended with {status}\n{}", self.name, self.report());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.fail("does not power off");
    }

    /// What the machine has written into one of its files.
    fn log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}\n{}", self.name, self.report());
    }

    fn report(&self) -> String {
        let log = |name: &str| {
            let text = self.log(name);
            let lines: Vec<_> = text.lines().rev().take(30).collect();
            lines.iter().rev().map(|line| format!("  {name}: {line}\n")).collect::<String>()
        };
        format!("{}{}{}", self.console.tail(), log("log"), log("kernel"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // Its group is gone if it is.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
