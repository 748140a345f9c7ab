//! Seccomp: the system calls that the process may make, and those of each role.
//!
//! ```text
//! fatal    what only an attacker asks for: execve, ptrace, other sockets ...     the process is killed
//! absent   clone3, whose arguments a filter cannot see                           ENOSYS: libc takes clone
//! base     what some role needs, with limits to its arguments                    anything else: EPERM
//! role     what this thread needs                                                anything else: EPERM
//! ```
//!
//! **Why not kill for everything that is not listed.** A killed server costs each of its guests a
//! disk. A call may be missing here without an attack: another libc, a newer kernel, a library's
//! slow path (malloc(3) counts the processors in sysfs when threads compete). Callers handle an
//! error, and it gives an attacker nothing. What is fatal has no use in a server whatever its
//! libraries are: there, code of somebody else runs already, all guests' disks are at stake, and
//! the end is the better outcome.
//!
//! A call that every filter of a thread permits whatever its arguments costs next to nothing: the
//! kernel remembers that (since 5.11).

mod base;
mod fatal;
mod roles;
mod rules;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use self::rules::Rules;
use super::sandbox::Sandbox;
use super::state::State;

pub use self::roles::Role;

/// The filters, compiled.
#[derive(Debug)]
pub(super) struct Filters {
    sandbox: Sandbox,
    process: [BpfProgram; 3],
    roles: Vec<(Role, BpfProgram)>,
}

impl Filters {
    pub(super) fn compile(new_rings: bool) -> Result<Self, State> {
        let compiled = || -> Result<Self, BackendError> {
            let allow = |rules| program(rules, refused(), SeccompAction::Allow);
            let process = [
                program(fatal::rules()?, SeccompAction::Allow, SeccompAction::KillProcess)?,
                program(
                    fatal::absent(),
                    SeccompAction::Allow,
                    SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
                )?,
                allow(base::rules(new_rings)?)?,
            ];
            let role = |role: Role| Ok((role, allow(role.calls().map(|call| (call, vec![])).collect())?));
            let roles = Role::ALL.into_iter().map(role).collect::<Result<_, BackendError>>()?;
            Ok(Self { sandbox: Sandbox::Off, process, roles })
        };
        compiled().map_err(|error| State::Off {
            cause: format!("no filter can be made: {error}"),
            remedy: "run it on x86_64 or aarch64",
        })
    }

    /// Restricts this thread to what the process needs.
    pub(super) fn enter(self, sandbox: Sandbox) -> Result<Self, State> {
        for program in &self.process {
            apply_filter(program).map_err(|error| State::Off {
                cause: error.to_string(),
                remedy: "run a kernel with CONFIG_SECCOMP_FILTER, and permit the call seccomp",
            })?;
        }
        Ok(Self { sandbox, ..self })
    }

    /// Restricts this thread to what a role needs.
    pub(super) fn apply(&self, role: Role) -> Result<(), seccompiler::Error> {
        // Each role has one.
        self.roles.iter().filter(|(of, _)| *of == role).try_for_each(|(_, program)| apply_filter(program))
    }

    pub(super) const fn sandbox(&self) -> Sandbox {
        self.sandbox
    }
}

const fn refused() -> SeccompAction {
    SeccompAction::Errno(libc::EPERM.cast_unsigned())
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile() {
        let filters = Filters::compile(true).unwrap();
        assert_eq!(filters.roles.len(), Role::ALL.len());
    }

    #[test]
    fn no_role_has_what_the_process_has_not() {
        let base = base::rules(true).unwrap();
        for role in Role::ALL {
            assert!(role.calls().all(|call| base.contains_key(&call)), "{role:?}");
        }
    }

    #[test]
    fn nothing_is_permitted_that_is_always_fatal() {
        let base = base::rules(true).unwrap();
        for (call, rules) in fatal::rules().unwrap() {
            assert!(!rules.is_empty() || !base.contains_key(&call), "{call}");
        }
    }

    #[test]
    fn a_thread_that_starts_others_has_what_they_need_to_restrict_themselves() {
        for role in [Role::Worker, Role::Flusher, Role::Control] {
            let control: Vec<_> = Role::Control.calls().collect();
            assert!(role.calls().all(|call| control.contains(&call)), "{role:?}");
        }
    }
}
