//! What the confined process does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;

use host_std::confine::{Confinement, Grant, Policy, Report, Role, Sandbox, ServiceManager, thread};
use io_uring::IoUring;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::attempt::{Attempt, Identity, NOBODY};
use crate::{forbidden, needed, start, threads};

/// What a server has open when it confines itself.
pub(crate) struct Open {
    pub(crate) image: File,
    pub(crate) listener: UnixListener,
    /// A client that has connected and is not accepted yet.
    pub(crate) waiting: UnixStream,
    /// A connection, from both ends.
    pub(crate) near: UnixStream,
    pub(crate) far: UnixStream,
    pub(crate) memory: OwnedFd,
    pub(crate) event: OwnedFd,
    pub(crate) epoll: OwnedFd,
    pub(crate) manager: ServiceManager,
    /// The manager's end.
    pub(crate) told: UnixDatagram,
    /// One that nobody has restricted.
    pub(crate) ring: IoUring,
}

impl Open {
    fn all() -> io::Result<Self> {
        let image = OpenOptions::new().read(true).write(true).open("image")?;
        let listener = UnixListener::bind("socket")?;
        let waiting = UnixStream::connect("socket")?;
        let (near, far) = UnixStream::pair()?;
        let memory = memfd_create("memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, 1 << 16)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let told = UnixDatagram::bind("manager")?;
        told.set_nonblocking(true)?;
        let manager = ServiceManager::connect()?.expect("it is named");
        let ring = IoUring::new(4)?;
        Ok(Self { manager, told, image, listener, waiting, near, far, memory, event, epoll, ring })
    }
}

/// Runs an attempt, and says how it went.
pub(crate) fn run(attempt: &Attempt) -> ExitCode {
    let &Attempt { identity, role, ref name } = attempt;
    if let Some(act) = start::find(name) {
        return say(act());
    }
    if identity == Identity::Plain {
        become_nobody().expect("root becomes nobody");
    }
    let mut open = Open::all().expect("what a server has open");
    let report = enter(identity, role).expect("the sandbox is required, and complete");
    if name == "report" {
        println!("{report}");
        return ExitCode::SUCCESS;
    }
    if name == "threads" {
        return threads::wait_in_every_role();
    }
    let act = forbidden::find(name).or_else(|| needed::find(name)).expect("an attempt");
    let mut act = move || {
        thread(role);
        act(&mut open)
    };
    let result = if role == Role::Main {
        act()
    } else {
        std::thread::Builder::new()
            .name("attempt".into())
            .spawn(act)
            .expect("a thread")
            .join()
            .expect("its end")
    };
    say(result)
}

fn say(result: io::Result<()>) -> ExitCode {
    match result.map_err(|error| error.raw_os_error()) {
        Ok(()) => println!("ok"),
        Err(Some(errno)) => println!("errno {errno}"),
        Err(None) => println!("failed"),
    }
    ExitCode::SUCCESS
}

fn enter(identity: Identity, role: Role) -> Result<Report, host_std::confine::Error> {
    let here = PathBuf::from(".");
    let mut grants = vec![Grant::Image { path: "image".into(), writable: true }, Grant::SocketFolder(here)];
    if role == Role::Control {
        grants.push(Grant::ImageFolder("plugged".into()));
    }
    let user = (identity == Identity::Becomes).then(|| format!("{NOBODY}:{NOBODY}").parse()).transpose()?;
    let new_rings = role == Role::Control;
    Confinement::prepare(Policy { sandbox: Sandbox::Require, user, grants, new_rings })?.enter()
}

fn become_nobody() -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // As a process that this user had started would be.
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}
