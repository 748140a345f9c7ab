//! A server process under ptrace: its system calls are named, one of them is failed or has the process killed, and what they do to
//! the image is noted.

use std::collections::HashMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno as NixErrno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::{Errno, Sysno};

use crate::calls::{Action, Call, Plan, Target, has_target, is_done_in_any_case, is_of_the_library};
use crate::history::{Effect, History};
use crate::interest;
use crate::uring::Rings;

/// How long a thread is held that is killed late: the others need less for what they have to do, if they do not wait for it.
const HELD: Duration = Duration::from_millis(5);

/// The event of a thread that a filter stops.
const SECCOMP: i32 = libc::PTRACE_EVENT_SECCOMP;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(Signal),
}

/// A call that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) call: Call,
    /// The loader's, the allocator's or the standard library's.
    pub(crate) library: bool,
    pub(crate) target: Target,
}

/// What is known of a traced process so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Paths of unix sockets that it listens on.
    pub(crate) listening: Vec<PathBuf>,
    /// It came to the call of the plan.
    pub(crate) reached: bool,
    /// The plan's call was the library's.
    pub(crate) reached_library: bool,
    pub(crate) exit: Option<Exit>,
    /// Every call, in the order in which they were made.
    pub(crate) made: Vec<Made>,
}

/// A process that is traced, by a thread of its own. Killed when this is dropped.
pub(crate) struct Traced {
    pid: Pid,
    watched: Arc<Watched>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What is known of a server, and a wake-up for each change of it.
#[derive(Default)]
pub(crate) struct Watched {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Watched {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `until` holds or the server has ended, and returns whether it holds.
    pub(crate) fn wait(&self, limit: Duration, mut until: impl FnMut(&Seen) -> bool) -> bool {
        let seen = self.lock();
        let going_on = |seen: &mut Seen| !until(seen) && seen.exit.is_none();
        let waited = self.changed.wait_timeout_while(seen, limit, going_on);
        let seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        until(&seen)
    }

    /// How it ended, if it does within the limit.
    pub(crate) fn wait_exit(&self, limit: Duration) -> Option<Exit> {
        self.wait(limit, |seen| seen.exit.is_some());
        self.lock().exit
    }
}

impl Traced {
    /// Starts a program. What it does to the image goes into `history`.
    ///
    /// # Errors
    /// If it cannot be started or traced.
    pub(crate) fn start(
        command: Command,
        plan: Option<Plan>,
        image: &Path,
        history: &Arc<History>,
        watched: Arc<Watched>,
    ) -> Result<Self, String> {
        let (started, pid) = channel();
        let tracer = Tracer {
            watched: Arc::clone(&watched),
            plan,
            image: image.to_owned(),
            history: Arc::clone(history),
            process: Pid::from_raw(0),
            threads: HashMap::new(),
            names: HashMap::new(),
            bound: HashMap::new(),
            rings: Rings::default(),
            failing: None,
            in_main: false,
        };
        // The thread that starts a process is the one that may trace it.
        let thread = std::thread::Builder::new()
            .name("tracer".into())
            .spawn(move || tracer.run(command, &started))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        let pid = pid.recv().map_err(|_| "the tracer ended")??;
        Ok(Self { pid, watched, thread: Some(thread) })
    }

    /// Sends a signal, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        let seen = self.watched.lock();
        // Under the lock, the tracer cannot have said that it has ended: the number is still its own.
        if seen.exit.is_none() {
            let _ = kill(self.pid, signal);
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A thread of the process.
#[derive(Default)]
struct Thread {
    /// Its name; until it has one of its own, its calls are those of the standard library that makes it.
    name: Option<String>,
    counts: HashMap<Sysno, u32>,
    /// The call that it is in.
    within: Option<Within>,
}

struct Within {
    syscall: Sysno,
    arguments: [u64; 6],
    /// When it was entered, if it is one that matters to the image.
    entered: Option<u64>,
    then: Option<Action>,
}

struct Tracer {
    watched: Arc<Watched>,
    plan: Option<Plan>,
    image: PathBuf,
    history: Arc<History>,
    process: Pid,
    threads: HashMap<Pid, Thread>,
    /// How many threads have had a name.
    names: HashMap<String, u32>,
    /// By descriptor: what a socket was bound to.
    bound: HashMap<u64, PathBuf>,
    rings: Rings,
    /// Calls of this kind on this descriptor fail from now on.
    failing: Option<(Sysno, u64, Errno)>,
    /// The loader, and what runs before `main`, are done.
    in_main: bool,
}

impl Tracer {
    fn run(mut self, command: Command, started: &Sender<Result<Pid, String>>) {
        let spawned = self.spawn(command);
        let begun = spawned.and_then(|child| self.attach(Pid::from_raw(child.id().cast_signed())));
        let failed = begun.is_err();
        // Whoever started this waits for it.
        let _ = started.send(begun);
        if !failed {
            self.trace();
        }
    }

    fn spawn(&self, mut command: Command) -> Result<Child, String> {
        let filter = self.plan.as_ref().map(|plan| interest::filter(plan.call.syscall)).transpose()?;
        let begin = move || {
            filter.as_ref().map_or(Ok(()), interest::enter)?;
            ptrace::traceme().map_err(std::io::Error::from)
        };
        // SAFETY: `begin` makes three system calls, which may be made between fork and exec: it neither allocates nor locks.
        unsafe { command.pre_exec(begin) };
        let program = command.get_program().to_owned();
        command.spawn().map_err(|error| {
            format!("cannot run {} under ptrace: {error}; is ptrace permitted here?", program.display())
        })
    }

    /// The process has stopped at its first instruction.
    fn attach(&mut self, pid: Pid) -> Result<Pid, String> {
        let denied = |errno: NixErrno| format!("ptrace: {errno}; it has to be permitted for this test");
        match waitpid(pid, Some(WaitPidFlag::__WALL)).map_err(denied)? {
            WaitStatus::Stopped(..) => {}
            other => return Err(format!("the process did not stop to be traced: {other:?}")),
        }
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(pid, options).map_err(denied)?;
        self.process = pid;
        self.threads.insert(pid, Thread::default());
        self.take_name(pid);
        self.resume(pid, None).map_err(denied)?;
        Ok(pid)
    }

    /// Lets a thread go on to the next call of interest, or to the end of the one that it is in.
    fn resume(&self, pid: Pid, signal: Option<Signal>) -> nix::Result<()> {
        let within = self.threads.get(&pid).is_some_and(|thread| thread.within.is_some());
        if self.plan.is_none() || within { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) }
    }

    fn trace(&mut self) {
        loop {
            let status = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD));
            let (pid, signal) = match status {
                Err(NixErrno::EINTR) => continue,
                // Nobody is left.
                Err(_) => {
                    return self.watched.change(|seen| {
                        seen.exit.get_or_insert(Exit::Signal(Signal::SIGKILL));
                    });
                }
                Ok(WaitStatus::Exited(pid, code)) if pid == self.process => {
                    return self.watched.change(|seen| seen.exit = Some(Exit::Code(code)));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.process => {
                    return self.watched.change(|seen| seen.exit = Some(Exit::Signal(signal)));
                }
                Ok(WaitStatus::PtraceSyscall(pid) | WaitStatus::PtraceEvent(pid, _, SECCOMP)) => {
                    self.at_call(pid);
                    if self.is_held(pid) {
                        continue;
                    }
                    (pid, None)
                }
                // A new thread begins with a stop.
                Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)) if !self.threads.contains_key(&pid) => {
                    self.threads.insert(pid, Thread::default());
                    (pid, None)
                }
                Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
                Ok(WaitStatus::PtraceEvent(pid, ..)) => (pid, None),
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => {
                    self.threads.remove(&pid);
                    continue;
                }
                Ok(_) => continue,
            };
            // A process that was killed meanwhile is gone.
            let _ = self.resume(pid, signal);
        }
    }

    fn at_call(&mut self, pid: Pid) {
        let Ok(info) = ptrace::syscall_info(pid) else { return };
        let mut entered = |number, arguments| {
            if let Some(syscall) = usize::try_from(number).ok().and_then(Sysno::new) {
                self.entered(pid, syscall, arguments);
            }
        };
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: `entry` is the union's member for this operation (ptrace(2), PTRACE_GET_SYSCALL_INFO).
                let entry = unsafe { info.u.entry };
                entered(entry.nr, entry.args);
            }
            libc::PTRACE_SYSCALL_INFO_SECCOMP => {
                // SAFETY: `seccomp` is the union's member for this operation.
                let stopped = unsafe { info.u.seccomp };
                entered(stopped.nr, stopped.args);
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: `exit` is the union's member for this operation.
                let exit = unsafe { info.u.exit };
                self.left(pid, exit.sval);
            }
            _ => {}
        }
    }

    fn entered(&mut self, pid: Pid, syscall: Sysno, arguments: [u64; 6]) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let named = thread.name.is_some();
        let name = thread.name.clone().unwrap_or_else(|| "new-thread".into());
        let number = thread.counts.entry(syscall).or_default();
        *number += 1;
        let call = Call { thread: name, syscall, number: *number };
        let entered = concerns_image(syscall).then(|| self.history.now());
        // Of a life with a plan, one call is of interest: to look at the others takes as long as to live it.
        let then = match &self.plan {
            Some(plan) if plan.call != call => None,
            _ => self.look_at(pid, call, named, arguments),
        };
        let lasting = self.failing.filter(|&(kind, fd, _)| kind == syscall && fd == arguments[0]);
        let then = match (then, lasting) {
            (Some(Action::FailOn(errno)), _) => {
                self.failing = Some((syscall, arguments[0], errno));
                Some(Action::Fail(errno))
            }
            (None, Some((.., errno))) => Some(Action::Fail(errno)),
            (then, _) => then,
        };
        match then {
            Some(Action::KillLate) => self.kill_late(),
            Some(Action::KillBefore) => {
                replace_call(pid);
                let _ = kill(self.process, Signal::SIGKILL);
            }
            Some(action @ Action::Fail(_))
                if !is_done_in_any_case(syscall, action, target(pid, syscall, arguments[0])) =>
            {
                replace_call(pid);
            }
            Some(Action::KillAfter | Action::Fail(_) | Action::FailOn(_)) | None => {}
        }
        if let Some(thread) = self.threads.get_mut(&pid) {
            thread.within = Some(Within { syscall, arguments, entered, then });
        }
    }

    /// Notes a call, and returns what the plan has for it.
    fn look_at(&self, pid: Pid, call: Call, named: bool, arguments: [u64; 6]) -> Option<Action> {
        let syscall = call.syscall;
        let library = !self.in_main
            || !named
            || is_of_the_library(syscall, arguments)
            // std::fs::ReadDir asserts that it goes well.
            || (syscall == Sysno::close && is_directory(pid, arguments[0]));
        let target = target(pid, syscall, arguments[0]);
        let planned = self.plan.as_ref().map(|plan| plan.action);
        // By its number it may be another call than was recorded, which cannot fail in this way.
        let then = planned.filter(|planned| Action::all_of(syscall, target).any(|action| action == *planned));
        self.watched.change(|seen| {
            seen.made.push(Made { call, library, target });
            if then.is_some() {
                seen.reached = true;
                seen.reached_library = library;
            }
        });
        then
    }

    /// Whether a thread stays where it is, until the process is killed.
    fn is_held(&self, pid: Pid) -> bool {
        let within = self.threads.get(&pid).and_then(|thread| thread.within.as_ref());
        within.is_some_and(|within| within.then == Some(Action::KillLate))
    }

    fn kill_late(&self) {
        let (process, watched) = (self.process, Arc::clone(&self.watched));
        std::thread::spawn(move || {
            if watched.wait_exit(HELD).is_none() {
                let _ = kill(process, Signal::SIGKILL);
            }
        });
    }

    fn left(&mut self, pid: Pid, mut result: i64) {
        let Some(within) = self.threads.get_mut(&pid).and_then(|thread| thread.within.take()) else { return };
        let Within { syscall, arguments, entered, then } = within;
        match then {
            Some(Action::Fail(errno) | Action::FailOn(errno)) => {
                result = -i64::from(errno.into_raw());
                set_result(pid, result);
            }
            Some(Action::KillAfter) => {
                let _ = kill(self.process, Signal::SIGKILL);
            }
            Some(Action::KillBefore | Action::KillLate) => return,
            None => {}
        }
        if let Some(entered) = entered {
            self.note(pid, syscall, arguments, result, entered);
        }
        match syscall {
            Sysno::prctl if arguments[0] == libc::PR_SET_NAME as u64 => self.take_name(pid),
            Sysno::mmap => self.rings.mapped(arguments, result),
            Sysno::io_uring_enter => {
                for write in self.rings.entered(pid, arguments[0], result) {
                    let effect = Effect::Submitted { range: write.range, stable: write.stable };
                    self.history.add(self.history.now(), effect);
                }
            }
            // The last thing before `main` is the signal stack of its thread.
            Sysno::sigaltstack if arguments[0] != 0 => self.in_main = true,
            Sysno::bind if result == 0 => {
                if let Some(path) = read_path(pid, arguments[1] + 2, arguments[2].saturating_sub(2)) {
                    self.bound.insert(arguments[0], path);
                }
            }
            Sysno::listen if result == 0 => {
                if let Some(path) = self.bound.get(&arguments[0]) {
                    self.watched.change(|seen| seen.listening.push(path.clone()));
                }
            }
            _ => {}
        }
    }

    fn take_name(&mut self, pid: Pid) {
        let comm = std::fs::read_to_string(format!("/proc/{}/task/{pid}/comm", self.process));
        let comm = comm.map_or_else(|_| "unknown".into(), |comm| comm.trim_end().to_owned());
        let count = self.names.entry(comm.clone()).or_default();
        *count += 1;
        let name = if *count == 1 { comm } else { format!("{comm}#{count}") };
        if let Some(thread) = self.threads.get_mut(&pid) {
            thread.name = Some(name);
            // Its calls are counted from here on.
            thread.counts.clear();
        }
    }

    /// Notes what a call did to the image, if it is about the image.
    fn note(&self, pid: Pid, syscall: Sysno, arguments: [u64; 6], result: i64, entered: u64) {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{}", arguments[0]));
        if !link.is_ok_and(|path| path == self.image) {
            return;
        }
        let moved = u64::try_from(result).unwrap_or(0);
        let effect = match syscall {
            Sysno::fdatasync | Sysno::fsync if result == 0 => Effect::Synced,
            Sysno::fdatasync | Sysno::fsync if result == -i64::from(libc::EINTR) => return,
            Sysno::fdatasync | Sysno::fsync => Effect::SyncFailed,
            _ if result < 0 => return,
            Sysno::fallocate => {
                Effect::Wrote { range: arguments[2]..arguments[2] + arguments[3], stable: false }
            }
            Sysno::pwritev2 => {
                let stable = arguments[5] & (libc::RWF_DSYNC | libc::RWF_SYNC) as u64 != 0;
                Effect::Wrote { range: arguments[3]..arguments[3] + moved, stable }
            }
            _ => Effect::Wrote { range: arguments[3]..arguments[3] + moved, stable: false },
        };
        self.history.add(entered, effect);
    }
}

/// What the descriptor of a traced thread is, where its errors depend on that.
fn target(pid: Pid, syscall: Sysno, fd: u64) -> Target {
    if !has_target(syscall) {
        return Target::default();
    }
    std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).map_or(Target::Other, |link| Target::of(&link))
}

fn is_directory(pid: Pid, fd: u64) -> bool {
    std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|metadata| metadata.is_dir())
}

fn concerns_image(syscall: Sysno) -> bool {
    use Sysno::{fallocate, fdatasync, fsync, pwrite64, pwritev, pwritev2};
    matches!(syscall, pwrite64 | pwritev | pwritev2 | fallocate | fdatasync | fsync)
}

/// The call that a thread is about to make becomes one that does not exist.
fn replace_call(pid: Pid) {
    if let Ok(mut registers) = ptrace::getregs(pid) {
        registers.orig_rax = u64::MAX;
        // It may have been killed meanwhile.
        let _ = ptrace::setregs(pid, registers);
    }
}

fn set_result(pid: Pid, result: i64) {
    if let Ok(mut registers) = ptrace::getregs(pid) {
        registers.rax = result.cast_unsigned();
        let _ = ptrace::setregs(pid, registers);
    }
}

/// A path in the memory of a traced thread.
fn read_path(pid: Pid, address: u64, bytes: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;

    let mut path = Vec::new();
    for offset in (0..bytes).step_by(8) {
        let word = ptrace::read(pid, (address + offset) as ptrace::AddressType).ok()?;
        path.extend_from_slice(&word.to_ne_bytes());
    }
    path.truncate(bytes as usize);
    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
    path.truncate(end);
    (!path.is_empty()).then(|| PathBuf::from(std::ffi::OsString::from_vec(path)))
}
