//! What code that has taken over a thread would try next.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::ptr;

use host_std::confine::Role;
use io_uring::{IoUring, opcode, types::Fd};
use libc::{c_int, c_long};
use libtest_mimic::Trial;

use crate::attempt::{Attempt, Identity};
use crate::child::Open;

type Act = fn(&mut Open) -> io::Result<()>;

/// How an attempt must end.
#[derive(Clone, Copy)]
enum End {
    Killed,
    Refused,
}
use End::{Killed, Refused};

const ATTEMPTS: &[(&str, End, Act)] = &[
    ("opens-a-file-of-the-system", Refused, |_| File::open("/etc/passwd").map(drop)),
    ("opens-the-sibling-of-the-image", Refused, |_| File::open("sibling").map(drop)),
    ("writes-the-sibling-of-the-image", Refused, |_| File::options().write(true).open("sibling").map(drop)),
    ("truncates-the-sibling-of-the-image", Refused, |_| {
        // SAFETY: the path is a string that ends with a zero.
        check(unsafe { libc::truncate(c"sibling".as_ptr(), 0) }.into())
    }),
    ("makes-a-file", Refused, |_| File::create("new").map(drop)),
    ("lists-a-folder", Refused, |_| std::fs::read_dir(".").map(drop)),
    ("renames-the-image", Refused, |_| std::fs::rename("image", "other")),
    ("opens-a-file-through-a-ring", Refused, |open| open_through(&mut open.ring, c"/etc/passwd")),
    ("opens-the-sibling-through-a-ring", Refused, |open| open_through(&mut open.ring, c"sibling")),
    ("connects-by-tcp", Killed, |_| TcpStream::connect("127.0.0.1:1").map(drop)),
    ("makes-a-udp-socket", Killed, |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("makes-a-netlink-socket", Killed, |_| call(libc::SYS_socket, [libc::AF_NETLINK, libc::SOCK_RAW, 0])),
    ("connects-to-an-abstract-socket", Refused, |_| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name("x")?).map(drop)
    }),
    ("connects-to-a-socket-with-a-path", Refused, |_| UnixStream::connect("socket").map(drop)),
    ("connects-a-socket-that-it-has", Refused, |open| {
        // SAFETY: no address is passed.
        check(unsafe { libc::connect(open.near.as_raw_fd(), ptr::null(), 0) }.into())
    }),
    ("makes-a-pair-of-sockets", Refused, |_| UnixStream::pair().map(drop)),
    ("executes-a-program", Killed, |_| {
        let nothing = [ptr::null()];
        // SAFETY: the path ends with a zero and the list with a null pointer. Should it succeed,
        // this program is gone.
        check(unsafe { libc::execve(c"/bin/true".as_ptr(), nothing.as_ptr(), nothing.as_ptr()) }.into())
    }),
    ("starts-a-process", Killed, |_| call(libc::SYS_clone, [libc::SIGCHLD, 0, 0])),
    ("starts-a-process-by-a-structure", Refused, |_| {
        // Of struct clone_args: flags, three addresses, the signal at the end, four fields more
        // (clone(2)).
        let structure = [0_u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
        // SAFETY: the structure has the size that is passed. A copy of this process would go on as
        // it does.
        check(unsafe { libc::syscall(libc::SYS_clone3, structure.as_ptr(), size_of_val(&structure)) })
    }),
    ("traces-a-process", Killed, |_| {
        // SAFETY: a request that takes no pointer.
        check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) })
    }),
    ("signals-its-parent", Refused, |_| {
        // SAFETY: signal 0 does nothing but ask.
        check(unsafe { libc::kill(libc::getppid(), 0) }.into())
    }),
    ("signals-a-thread-of-its-parent", Refused, |_| {
        // SAFETY: asks for a number.
        let parent = unsafe { libc::getppid() };
        call(libc::SYS_tgkill, [parent, parent, 0])
    }),
    ("asks-for-signals-to-its-parent", Refused, |open| {
        // SAFETY: asks for a number.
        let parent = unsafe { libc::getppid() };
        // SAFETY: a command that takes a number.
        check(unsafe { libc::fcntl(open.near.as_raw_fd(), libc::F_SETOWN, parent) }.into())
    }),
    ("maps-code", Refused, |_| {
        // SAFETY: a mapping at an address of the kernel's choice, which nobody uses.
        let mapped = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("makes-memory-code", Refused, |_| {
        // SAFETY: the page is mapped here, and nobody else's; its bytes are not executed.
        unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let page = libc::mmap(ptr::null_mut(), 4096, access, kind, -1, 0);
            check(libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC).into())
        }
    }),
    ("unshares-a-namespace", Killed, |_| call(libc::SYS_unshare, [libc::CLONE_NEWUSER, 0, 0])),
    ("mounts", Killed, |_| {
        let (name, at) = (c"none".as_ptr(), c".".as_ptr());
        // SAFETY: strings that end with a zero, and no data.
        check(unsafe { libc::mount(name, at, c"tmpfs".as_ptr(), 0, ptr::null()) }.into())
    }),
    ("becomes-root", Killed, |_| call(libc::SYS_setuid, [0, 0, 0])),
    ("becomes-undumpable", Refused, |_| call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE, 0, 0])),
    ("types-into-the-terminal", Refused, |open| {
        // SAFETY: it would read one byte, which is there.
        check(unsafe { libc::ioctl(open.near.as_raw_fd(), libc::TIOCSTI, c"x".as_ptr()) }.into())
    }),
    ("reads-another-process", Killed, |_| call(libc::SYS_process_vm_readv, [1, 0, 0])),
    ("loads-a-program-into-the-kernel", Killed, |_| call(libc::SYS_bpf, [0, 0, 0])),
];

/// What some roles do, and others have no use for: for whom, and what.
const OF_OTHER_ROLES: &[(&str, &[Role], Act)] = &[
    (
        "opens-the-image",
        &[Role::Main, Role::Serve, Role::Queue, Role::Worker, Role::Flusher, Role::Watch],
        |_| File::open("image").map(drop),
    ),
    (
        "starts-a-thread",
        &[Role::Main, Role::Serve, Role::Queue, Role::Worker, Role::Flusher, Role::Watch],
        |_| std::thread::Builder::new().spawn(|| ()).map(drop),
    ),
    ("reads-the-image", &[Role::Main, Role::Flusher, Role::Watch], |open| {
        open.image.read_at(&mut [0; 512], 0).map(drop)
    }),
    ("flushes-the-image", &[Role::Watch], |open| open.image.sync_data()),
    ("accepts-a-client", &[Role::Main, Role::Queue, Role::Worker, Role::Flusher, Role::Watch], |open| {
        open.listener.accept().map(drop)
    }),
    (
        "removes-a-file",
        &[Role::Serve, Role::Queue, Role::Worker, Role::Flusher, Role::Control, Role::Watch],
        |_| std::fs::remove_file("socket"),
    ),
];

/// Where no new ring is needed.
const WITHOUT_NEW_RINGS: (&str, End, Act) = ("sets-up-a-ring", Refused, |_| IoUring::new(1).map(drop));
/// Where one is: what it opens is Landlock's to refuse.
const WITH_NEW_RINGS: (&str, End, Act) =
    ("opens-a-file-through-a-new-ring", Refused, |_| open_through(&mut IoUring::new(1)?, c"/etc/passwd"));

pub(crate) fn find(name: &str) -> Option<Act> {
    let all = ATTEMPTS.iter().chain([&WITHOUT_NEW_RINGS, &WITH_NEW_RINGS]);
    let all = all.map(|&(known, _, act)| (known, act));
    let all = all.chain(OF_OTHER_ROLES.iter().map(|&(known, _, act)| (known, act)));
    all.into_iter().find(|(known, _)| *known == name).map(|(_, act)| act)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for identity in Identity::ALL {
        for role in Role::ALL {
            let name = format!("{role:?}_as_{identity:?}_is_refused_what_is_forbidden");
            let trial = Trial::test(name.to_lowercase(), move || {
                let ring = if role == Role::Control { &WITH_NEW_RINGS } else { &WITHOUT_NEW_RINGS };
                let here = |(_, roles, _): &&(_, &[Role], _)| roles.contains(&role);
                let others = OF_OTHER_ROLES.iter().filter(here).map(|&(name, _, _)| (name, Refused));
                let all = ATTEMPTS.iter().chain([ring]).map(|&(name, end, _)| (name, end));
                for (name, end) in all.chain(others) {
                    let attempt = Attempt { identity, role, name: name.into() };
                    let outcome = attempt.run();
                    let well = match end {
                        Killed => outcome.is_killed(),
                        Refused => outcome.is_refused(),
                    };
                    if !well {
                        return Err(format!("{attempt}: {outcome:?}").into());
                    }
                }
                Ok(())
            });
            trials.push(trial.with_ignored_flag(identity.is_out_of_reach()));
        }
    }
    trials
}

fn check(returned: c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A call whose arguments are numbers.
fn call(number: c_long, arguments: [c_int; 3]) -> io::Result<()> {
    let [a, b, c] = arguments.map(c_long::from);
    // SAFETY: the callers' calls take no pointer among their first three arguments, or a null
    // pointer; the others are 0.
    check(unsafe { libc::syscall(number, a, b, c, 0, 0, 0) })
}

fn open_through(ring: &mut IoUring, path: &CStr) -> io::Result<()> {
    let entry = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build();
    // SAFETY: the path outlives the wait for its completion.
    unsafe { ring.submission().push(&entry) }.expect("an empty ring");
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().expect("it was waited for").result();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the ring has just made it, and nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(result) });
    Ok(())
}
