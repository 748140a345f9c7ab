//! Confinement of the process: what code that a guest or a client has taken over can still do.
//!
//! A server of disks parses rings and messages of parties that it does not trust, and holds files,
//! memory and sockets of several guests. After its start it needs nothing but these, so everything
//! else is given up, in layers that do not depend on each other:
//!
//! ```text
//! privileges   no_new_privs, no capabilities, the user of --user          what the process may do
//! filesystem   Landlock: images, recordings, folders that were named      what it may open, connect to, signal
//! syscalls     seccomp: a list for the process, a shorter one per role    what it may ask of the kernel
//! io_uring     restrictions of each ring (backend): read, write           what it may ask through a ring
//! ```
//!
//! Privileges, Landlock and seccomp hold for the calling thread and those that it starts. Hence the
//! order:
//!
//! 1. **Open all:** sockets, images, recordings, the connection to a service manager
//!    ([`ServiceManager`]).
//! 2. **Reopen all:** each thread's own descriptor of an image, each queue's ring. With `--user`, a
//!    file that this user may not open cannot be opened again later, not even through
//!    /proc/self/fd.
//! 3. **Enter:** [`Confinement::enter`], on the only thread.
//! 4. **Spawn:** each thread begins with [`thread`] and its [`Role`].
//!
//! [`Confinement::prepare`] may come at any time before step 3; it does what can fail because of
//! what an operator typed.
//!
//! **Not promised:** threads share their memory, so code that runs in one can make another run what
//! it likes: the boundary is the list for the process, a role's list is an obstacle. Landlock has
//! no right for one name in a folder: whoever may remove a socket at the end may remove its
//! neighbours. Where new rings are permitted (hot-plug), a ring that an attacker sets up has no
//! restrictions but Landlock's.

mod error;
pub mod filesystem;
pub mod limits;
pub mod permissions;
pub mod privileges;
mod report;
mod sandbox;
mod service_manager;
mod state;
pub mod syscalls;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use self::error::Error;
pub use self::filesystem::Grant;
pub use self::privileges::User;
pub use self::report::{Part, Report};
pub use self::sandbox::Sandbox;
pub use self::service_manager::ServiceManager;
pub use self::state::State;
pub use self::syscalls::Role;

use self::filesystem::Rules;
use self::syscalls::Filters;

/// How long the kernel may take to forget a thread that has ended.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

/// Rights that a confined process keeps.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whether it is confined.
    pub sandbox: Sandbox,
    /// The user that it becomes, whether it is confined or not.
    pub user: Option<User>,
    /// What it may open and remove.
    pub grants: Vec<Grant>,
    /// Whether it may set up an io_uring after its start, which a hot-plugged image with direct I/O
    /// is faster with.
    pub new_rings: bool,
}

/// A confinement that is ready to be entered.
#[derive(Debug)]
pub struct Confinement {
    policy: Policy,
    rules: Option<Rules>,
}

impl Confinement {
    /// Looks up what the policy names. Nothing is given up yet.
    ///
    /// # Errors
    /// A file that cannot be found.
    pub fn prepare(policy: Policy) -> Result<Self, Error> {
        let rules = match policy.sandbox {
            Sandbox::Off => None,
            Sandbox::Auto | Sandbox::Require => Some(Rules::new(&policy.grants)?),
        };
        Ok(Self { policy, rules })
    }

    /// Confines this thread, and with it all that it starts. Call it on the only thread of the
    /// process, and once.
    ///
    /// # Errors
    /// The user cannot be become; there are other threads, which would stay as they are; or a part
    /// is missing and the sandbox is required. The process may then be confined in part: end it.
    pub fn enter(self) -> Result<Report, Error> {
        let Self { policy, rules } = self;
        let Policy { sandbox, user, new_rings, .. } = policy;
        check_alone()?;
        // rustix reads the auxiliary vector when it is first asked for something in it, and panics if it
        // may not (1.1.6, linux_raw, `init_auxv`): a confined thread can neither ask the kernel for it nor
        // open /proc/self/auxv.
        rustix::param::page_size();
        let mut report = Report::new(sandbox);
        if sandbox != Sandbox::Off {
            report.add("capabilities", privileges::drop_bounding_set());
        }
        if let Some(user) = &user {
            user.become_it()?;
            report.set_user(user.clone());
        }
        let Some(rules) = rules else { return Ok(report) };
        report.merge("capabilities", privileges::drop_all());
        // Before the filters, which permit none of what these two do.
        report.add("io_uring", crate::backend::can_restrict().into());
        report.add("files", rules.restrict());
        report.add(
            "system calls",
            match Filters::compile(new_rings).and_then(|filters| filters.enter(sandbox)) {
                Ok(filters) => {
                    // There is one already only if this was called twice: the first, which holds as
                    // well, is kept.
                    let _ = FILTERS.set(filters);
                    State::On
                }
                Err(state) => state,
            },
        );
        report.check()?;
        Ok(report)
    }
}

/// The lists of the roles, once the process is confined.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Restricts this thread to what its role needs, as the first thing that it does. Does nothing in a
/// process that is not confined.
///
/// Inherited by the threads that it starts: they can restrict themselves further, to a role that
/// needs no more.
///
/// # Panics
/// If the sandbox is required and the kernel refuses: the thread must not begin its work then.
pub fn thread(role: Role) {
    let Some(filters) = FILTERS.get() else { return };
    if let Err(error) = filters.apply(role) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        tracing::error!(thread = name, %error, "sandbox: this thread keeps the list of the whole process");
        assert!(filters.sandbox() != Sandbox::Require, "--sandbox=require: thread {name}: {error}");
    }
}

/// What the kernel starts for a ring is not a thread of ours: it makes no system calls.
///
/// One that has just been joined is listed until the kernel has reaped it.
fn check_alone() -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let threads = threads()?;
        if threads.len() <= 1 {
            return Ok(());
        }
        if begun.elapsed() > REAPED_WITHIN {
            let cause = format!("it has more than one: {}", threads.join(", "));
            let remedy = "this is a defect: please report it";
            return Err(Error::new("sandbox", "confine every thread of this process", cause, remedy));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Names of the threads, this one included.
fn threads() -> Result<Vec<String>, Error> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|error| {
        Error::new(
            "sandbox",
            "count the threads of this process",
            error,
            "mount /proc, or give --sandbox=off",
        )
    })?;
    let ours = |name: &str| !name.starts_with("iou-");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Ok(names.filter(|name| ours(name)).map(|name| name.trim_end().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written() {
        for sandbox in [Sandbox::Off, Sandbox::Auto, Sandbox::Require] {
            assert_eq!(sandbox.to_string().parse::<Sandbox>().unwrap(), sandbox);
        }
        assert_eq!("on".parse::<Sandbox>(), Err("give off, auto or require"));
    }

    #[test]
    fn a_process_with_other_threads_is_not_confined_in_part() {
        let (over, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let error = Confinement::prepare(Policy::default()).unwrap().enter().unwrap_err().to_string();
        assert!(error.contains("more than one"), "{error}");
        drop(over);
        other.join().unwrap().unwrap_err();
    }
}
