//! A process that confines itself and tries something.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use host_std::confine::Role;
use tempfile::TempDir;

/// Where a process finds its attempt.
const VARIABLE: &str = "BLK_HOST_CONFINED_ATTEMPT";

/// Nobody's number on most systems. No user of this name has to exist.
pub(crate) const NOBODY: u32 = 65534;

/// Who the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Who runs the tests, to the end.
    Same,
    /// Root, that becomes another user as `--user` says.
    Becomes,
    /// A user without privileges from the start.
    Plain,
}

impl Identity {
    pub(crate) const ALL: [Self; 3] = [Self::Same, Self::Becomes, Self::Plain];

    /// Whether a test as this one has to be ignored: a plain user cannot become another.
    pub(crate) fn is_out_of_reach(self) -> bool {
        self != Self::Same && !rustix::process::geteuid().is_root()
    }
}

/// What a process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) identity: Identity,
    pub(crate) role: Role,
    pub(crate) name: String,
}

impl Attempt {
    pub(crate) fn of_this_process() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let words: Vec<_> = text.split(' ').collect();
        let &[identity, role, name] = words.as_slice() else { panic!("{VARIABLE}={text}") };
        let identity =
            Identity::ALL.into_iter().find(|known| format!("{known:?}") == identity).expect("an identity");
        let role = Role::ALL.into_iter().find(|known| format!("{known:?}") == role).expect("a role");
        Some(Self { identity, role, name: name.into() })
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Outcome {
        let folder = folder();
        let output = self.command(folder.path()).output().expect("this program runs");
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        Outcome { status: output.status, said: text(&output.stdout), logged: text(&output.stderr) }
    }

    /// Starts it, with a pipe to each of its standard descriptors.
    pub(crate) fn start(&self, folder: &Path) -> Child {
        self.command(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program runs")
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
        command
            .env(VARIABLE, self.to_string())
            .env("RUST_BACKTRACE", "1")
            .env("NOTIFY_SOCKET", "manager")
            .current_dir(folder);
        command
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, role, name } = self;
        write!(f, "{identity:?} {role:?} {name}")
    }
}

/// A folder with an image and its sibling, which anybody may use as far as the file system is
/// asked.
pub(crate) fn folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = TempDir::new().unwrap();
    for name in ["image", "sibling"] {
        let path = folder.path().join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    // For images that are plugged in.
    std::fs::create_dir(folder.path().join("plugged")).unwrap();
    std::fs::set_permissions(folder.path().join("plugged"), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    status: ExitStatus,
    /// The error of the attempt, or "ok".
    pub(crate) said: String,
    logged: String,
}

impl Outcome {
    /// Ended by seccomp.
    pub(crate) fn is_killed(&self) -> bool {
        self.status.signal() == Some(libc::SIGSYS)
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The kernel said no.
    pub(crate) fn is_refused(&self) -> bool {
        let refusals = [libc::EPERM, libc::EACCES, libc::ENOSYS].map(|errno| format!("errno {errno}"));
        self.status.success() && refusals.contains(&self.said)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.status.success() && self.said == "ok"
    }

    /// Whether this is in its log.
    pub(crate) fn has_logged(&self, text: &str) -> bool {
        self.logged.contains(text)
    }
}
