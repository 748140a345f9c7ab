//! Report on the parts of the confinement: which are on.

use std::fmt;

use super::error::Error;
use super::privileges::User;
use super::sandbox::Sandbox;
use super::state::State;

/// Parts of the confinement that are on, and those that are not. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    sandbox: Sandbox,
    user: Option<User>,
    parts: Vec<Part>,
}

/// A part of the confinement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it confines.
    pub name: &'static str,
    /// Whether it does.
    pub state: State,
}

impl Report {
    pub(super) const fn new(sandbox: Sandbox) -> Self {
        Self { sandbox, user: None, parts: Vec::new() }
    }

    pub(super) fn add(&mut self, name: &'static str, state: State) {
        self.parts.push(Part { name, state });
    }

    /// A part consists of several: it is off if one of them is.
    pub(super) fn merge(&mut self, name: &'static str, state: State) {
        match self.parts.iter_mut().find(|part| part.name == name) {
            Some(part) if part.state == State::On => part.state = state,
            Some(_) => {}
            None => self.add(name, state),
        }
    }

    pub(super) fn set_user(&mut self, user: User) {
        self.user = Some(user);
    }

    /// The parts, in the order in which they were entered. None if the sandbox is off.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether no part is off.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing().is_none()
    }

    fn missing(&self) -> Option<Error> {
        self.parts.iter().find_map(|Part { name, state }| match state {
            State::On | State::OnBut(_) => None,
            State::Off { cause, remedy } => {
                let remedy = format!("{remedy}, or give --sandbox=auto");
                Some(Error::new("--sandbox=require", format_args!("confine its {name}"), cause, remedy))
            }
        })
    }

    /// # Errors
    /// The first part that is off, if the sandbox is required.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.missing() {
            Some(error) if self.sandbox == Sandbox::Require => Err(error),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox={}", self.sandbox)?;
        match &self.user {
            Some(user) => write!(f, ", user {user}")?,
            None if rustix::process::geteuid().is_root() => f.write_str(", user 0 (give --user)")?,
            None => {}
        }
        for (index, Part { name, state }) in self.parts.iter().enumerate() {
            f.write_str(if index == 0 { "; " } else { ", " })?;
            match state {
                State::On => write!(f, "{name} confined")?,
                State::OnBut(gaps) => write!(f, "{name} confined (not on this kernel: {gaps})")?,
                State::Off { cause, remedy } => write!(f, "{name} NOT confined: {cause} ({remedy})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(sandbox: Sandbox) -> Report {
        let mut report = Report::new(sandbox);
        report.add("files", State::OnBut("UDP".into()));
        report.add("system calls", State::Off { cause: "ENOSYS".into(), remedy: "run another kernel" });
        report
    }

    #[test]
    fn what_is_missing_is_told_in_one_line() {
        let text = with(Sandbox::Auto).to_string();
        assert!(text.starts_with("sandbox=auto"), "{text}");
        let parts = "; files confined (not on this kernel: UDP), system calls NOT confined: ENOSYS (run another kernel)";
        assert!(text.ends_with(parts) && !text.contains('\n'), "{text}");
    }

    #[test]
    fn a_required_sandbox_without_a_part_is_an_error_with_a_remedy() {
        assert!(with(Sandbox::Auto).check().is_ok());
        assert!(!with(Sandbox::Auto).is_complete());
        let error = with(Sandbox::Require).check().unwrap_err().to_string();
        assert_eq!(
            error,
            "--sandbox=require: cannot confine its system calls: ENOSYS; run another kernel, or give --sandbox=auto"
        );
    }

    #[test]
    fn a_part_is_on_only_if_all_of_it_is() {
        let off = State::Off { cause: "EPERM".into(), remedy: "" };
        let mut report = Report::new(Sandbox::Require);
        report.add("capabilities", State::On);
        report.merge("capabilities", off.clone());
        report.merge("capabilities", State::On);
        assert_eq!(report.parts(), [Part { name: "capabilities", state: off }]);
    }
}
