//! A booted kernel whose shell takes commands.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use host_std::testing::vm::{Machine as Process, Silence};
use tempfile::TempDir;

pub(crate) use crate::machine::{Boot, Front, Machine};

/// A guest whose shell takes commands. It ends with its owner.
pub(crate) struct Guest {
    process: Process,
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
        let command = command(folder.path());
        let process = Process::start(command, &folder.path().join("log")).expect("the guest starts");
        let mut guest = Self { process, folder, name, off };
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
        match self.process.console.line(deadline) {
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
                && let Err(error) = self.process.console.send(answer)
            {
                self.fail(&format!("{command}: {error}"));
            }
            lines.push(line);
        }
    }

    /// Starts a command; [`Self::finish`] or [`Self::silent`] goes on.
    pub(crate) fn start(&mut self, command: &str) {
        if let Err(error) = self.process.console.send(command) {
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
        match self.process.console.line(Instant::now() + time) {
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
            if let Some(status) = self.process.try_wait().expect("a child") {
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
        format!("{}{}{}", self.process.console.tail(), log("log"), log("kernel"))
    }
}
