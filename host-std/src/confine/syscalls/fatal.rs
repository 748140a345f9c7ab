//! System calls that no server makes, whatever its libraries are.

use libc::c_long;
use seccompiler::BackendError;

use super::rules::{Rules, has_bits, is_not};

/// Programs, other processes, namespaces, mounts, users, keys, the kernel's own code: each a usual
/// next step of an attack.
const FATAL: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_mknodat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_personality,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Of this processor alone.
#[cfg(target_arch = "x86_64")]
const FATAL_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const FATAL_HERE: &[c_long] = &[];

pub(super) fn rules() -> Result<Rules, BackendError> {
    let mut rules: Rules = [FATAL, FATAL_HERE].into_iter().flatten().map(|&call| (call, vec![])).collect();
    // A process, in any guise.
    rules.insert(libc::SYS_clone, vec![has_bits(0, libc::CLONE_THREAD.cast_unsigned(), 0)?]);
    // A network.
    let local = libc::AF_UNIX.cast_unsigned();
    rules.insert(libc::SYS_socket, vec![is_not(0, local)?]);
    rules.insert(libc::SYS_socketpair, vec![is_not(0, local)?]);
    Ok(rules)
}

/// Its arguments lie in memory, where no filter looks. libc then uses clone, whose flags are
/// arguments (clone(2), "VERSIONS").
pub(super) fn absent() -> Rules {
    Rules::from([(libc::SYS_clone3, vec![])])
}
