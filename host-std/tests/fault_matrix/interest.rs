//! The system calls that a tracer has to see in a life with a plan. The kernel lets all others pass without a stop, of which
//! there are ten times as many.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use syscalls::Sysno;

/// Always: what is done to the image, what names a thread, where it listens, and where `main` begins.
const ALWAYS: [Sysno; 10] = [
    Sysno::pwrite64,
    Sysno::pwritev,
    Sysno::pwritev2,
    Sysno::fallocate,
    Sysno::fdatasync,
    Sysno::fsync,
    Sysno::bind,
    Sysno::listen,
    Sysno::io_uring_enter,
    Sysno::sigaltstack,
];

/// A filter that stops a thread at what is always of interest, and at one kind of call.
pub(crate) fn filter(planned: Sysno) -> Result<BpfProgram, String> {
    let all = |syscall: Sysno| (i64::from(syscall.id()), Vec::new());
    let mut rules: BTreeMap<_, _> = ALWAYS.into_iter().map(all).collect();
    let argument = |syscall: Sysno, index, compare, value| -> Result<_, seccompiler::BackendError> {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, compare, value)?;
        Ok((i64::from(syscall.id()), vec![SeccompRule::new(vec![condition])?]))
    };
    let named = argument(Sysno::prctl, 0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64);
    let of_a_file = SeccompCmpOp::MaskedEq(libc::MAP_ANONYMOUS as u64);
    for rule in [named, argument(Sysno::mmap, 3, of_a_file, 0)] {
        rules.extend([rule.map_err(|error| error.to_string())?]);
    }
    // Whatever its arguments are: its calls are counted.
    rules.extend([all(planned)]);
    let stop = SeccompAction::Trace(0);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, stop, TargetArch::x86_64);
    filter.and_then(BpfProgram::try_from).map_err(|error| error.to_string())
}

/// Has this process, and what it becomes, stopped by the filter. It makes two system calls, and may be called after a fork.
pub(crate) fn enter(filter: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(filter).map_err(|_| io::Error::last_os_error())
}
