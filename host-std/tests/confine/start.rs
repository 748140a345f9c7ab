//! The start of a server: what it reports, and what it prepares. In a process each, as umask and
//! limits belong to one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use host_std::confine::permissions::{SocketAccess, bind_socket, open_or_make_private};
use host_std::confine::{self, Confinement, Policy, Report, Role, Sandbox, User, limits, thread};
use libtest_mimic::{Failed, Trial};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, Uid, getrlimit, setrlimit, umask};
use rustix::thread::set_thread_res_uid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::attempt::{Attempt, Identity, NOBODY, Outcome};

type Act = fn() -> io::Result<()>;

const ACTS: &[(&str, Act)] = &[
    ("what-is-made-is-its-owners-alone-whatever-the-umask", what_is_made_is_its_owners_alone),
    ("a-socket-has-the-permissions-that-were-asked-for", a_socket_has_its_permissions),
    ("a-socket-is-not-made-in-the-place-of-another-file", a_socket_replaces_nothing),
    ("the-soft-limit-on-descriptors-becomes-the-hard-one", the_soft_limit_is_raised),
    ("a-file-that-may-not-grow-is-an-error-and-no-signal", a_file_may_not_grow),
    ("a-part-that-the-host-lacks-is-told", a_missing_part_is_told),
    ("a-part-that-the-host-lacks-ends-the-start-where-it-is-required", a_missing_part_ends_the_start),
    ("a-user-that-may-not-be-become-ends-the-start", a_user_ends_the_start),
    ("a-sandbox-that-is-off-forbids-nothing", off_forbids_nothing),
];

pub(crate) fn find(name: &str) -> Option<Act> {
    ACTS.iter().find(|(known, _)| *known == name).map(|&(_, act)| act)
}

pub(crate) fn trials() -> Vec<Trial> {
    let act = |&(name, _): &(&'static str, Act)| {
        Trial::test(name.replace('-', "_"), move || {
            let outcome = run(name);
            if outcome.is_done() { Ok(()) } else { Err(format!("{outcome:?}").into()) }
        })
    };
    let report = Trial::test("the_report_is_one_line_that_names_each_part", the_report_names_each_part);
    ACTS.iter().map(act).chain([report]).collect()
}

fn run(name: &str) -> Outcome {
    Attempt { identity: Identity::Same, role: Role::Main, name: name.into() }.run()
}

fn the_report_names_each_part() -> Result<(), Failed> {
    let report = run("report").said;
    assert!(report.starts_with("sandbox=require"), "{report}");
    for part in ["capabilities", "io_uring", "files", "system calls"] {
        assert!(report.contains(&format!("{part} confined")), "{part} in {report}");
    }
    assert_eq!(report.lines().count(), 1, "{report}");
    Ok(())
}

fn permissions(path: &str) -> io::Result<u32> {
    Ok(fs::metadata(path)?.mode() & 0o777)
}

fn what_is_made_is_its_owners_alone() -> io::Result<()> {
    umask(Mode::empty());
    let mut file = open_or_make_private("new".as_ref())?;
    file.write_all(b"x")?;
    assert_eq!(permissions("new")?, 0o600);
    // One that is there is opened as it is.
    fs::write("old", "contents")?;
    open_or_make_private("old".as_ref())?;
    assert_eq!((permissions("old")?, fs::read("old")?.as_slice()), (0o666, &b"contents"[..]));
    Ok(())
}

fn a_socket_has_its_permissions() -> io::Result<()> {
    let gid = rustix::process::getegid().as_raw();
    let access = |mode: Option<&str>, group: Option<&str>| SocketAccess {
        mode: mode.map(|mode| mode.parse().expect("a mode")),
        group: group.map(|group| group.parse().expect("a group")),
    };
    let gid = gid.to_string();
    for mask in [0o000, 0o022, 0o077] {
        umask(Mode::from_raw_mode(mask));
        let cases = [
            (access(None, None), 0o600),
            (access(Some("600"), None), 0o600),
            (access(Some("666"), None), 0o666),
            (access(Some("660"), Some(&gid)), 0o660),
            (access(None, Some(&gid)), 0o660),
        ];
        for (access, mode) in cases {
            let listener = bind_socket("asked".as_ref(), &access)?;
            assert_eq!(permissions("asked")?, mode, "{access:?} and umask {mask:o}");
            UnixStream::connect("asked")?;
            listener.accept()?;
            fs::remove_file("asked")?;
        }
    }
    if rustix::process::geteuid().is_root() {
        let _listener = bind_socket("asked".as_ref(), &access(None, Some("4242")))?;
        assert_eq!(fs::metadata("asked")?.gid(), 4242);
    }
    Ok(())
}

fn a_socket_replaces_nothing() -> io::Result<()> {
    fs::write("taken", "contents")?;
    let error = bind_socket("taken".as_ref(), &SocketAccess::default()).expect_err("there is a file");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(fs::read("taken")?, b"contents");
    Ok(())
}

fn the_soft_limit_is_raised() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum })?;
    let descriptors = limits::raise_descriptors()?;
    assert_eq!((descriptors.before, descriptors.now, descriptors.hard), (Some(64), maximum, maximum));
    assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    let text = descriptors.to_string();
    assert!(text.contains("was 64"), "{text}");
    Ok(())
}

fn a_file_may_not_grow() -> io::Result<()> {
    limits::ignore_file_size_signal()?;
    setrlimit(Resource::Fsize, Rlimit { current: Some(4096), maximum: Some(4096) })?;
    let error = fs::write("large", vec![0; 8192]).expect_err("it may not");
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    Ok(())
}

/// A host without Landlock.
fn lack_landlock() -> Result<(), Box<dyn std::error::Error>> {
    let calls = BTreeMap::from([(libc::SYS_landlock_create_ruleset, vec![])]);
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, absent, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

fn enter(sandbox: Sandbox, user: Option<User>) -> Result<Report, confine::Error> {
    let policy = Policy { sandbox, user, ..Policy::default() };
    Confinement::prepare(policy).and_then(Confinement::enter)
}

fn a_missing_part_is_told() -> io::Result<()> {
    lack_landlock().expect("a filter");
    let report = enter(Sandbox::Auto, None).map_err(io::Error::other)?;
    let text = report.to_string();
    assert!(text.contains("files NOT confined: this kernel has no Landlock (run Linux 6.2"), "{text}");
    assert!(text.contains("system calls confined") && !report.is_complete(), "{text}");
    Ok(())
}

fn a_missing_part_ends_the_start() -> io::Result<()> {
    lack_landlock().expect("a filter");
    let error = enter(Sandbox::Require, None).expect_err("Landlock is missing").to_string();
    assert!(
        error.starts_with("--sandbox=require: cannot confine its files: this kernel has no Landlock;"),
        "{error}"
    );
    assert!(error.ends_with("or give --sandbox=auto"), "{error}");
    Ok(())
}

/// With any sandbox: it was asked for.
fn a_user_ends_the_start() -> io::Result<()> {
    let plain = Uid::from_raw(NOBODY);
    if rustix::process::geteuid().is_root() {
        set_thread_res_uid(plain, plain, plain)?;
    }
    for sandbox in [Sandbox::Off, Sandbox::Auto] {
        let user = "4242:4242".parse().map_err(io::Error::other)?;
        let error = enter(sandbox, Some(user)).expect_err("it has no privilege").to_string();
        assert!(error.starts_with("--user 4242:4242: cannot "), "{error}");
        assert!(error.ends_with("start as root, or as this user, or leave --user out"), "{error}");
    }
    Ok(())
}

/// For a debugger.
fn off_forbids_nothing() -> io::Result<()> {
    let report = enter(Sandbox::Off, None).map_err(io::Error::other)?;
    assert!(report.to_string().starts_with("sandbox=off") && report.parts().is_empty(), "{report}");
    thread(Role::Watch);
    fs::File::open("/etc/passwd").map(drop)
}
