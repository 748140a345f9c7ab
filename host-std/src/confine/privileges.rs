//! Privileges: none that a new program would give, no capabilities, another user.

use std::fmt;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::error::Error;
use super::state::State;

/// A user and a group that exist, or are given by number: `--user NAME[:GROUP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    text: String,
    uid: Uid,
    gid: Gid,
}

impl FromStr for User {
    type Err = Error;

    /// Looks the names up. The user's own group is taken if none is given.
    fn from_str(text: &str) -> Result<Self, Error> {
        let error = |action, cause, remedy| Error::new(format_args!("--user {text}"), action, cause, remedy);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let no_user = || error("find the user", "there is no such name", "give the name or number of a user");
        let (uid, own_gid) = match number(user) {
            Some(uid) => (uid, uzers::get_user_by_uid(uid).map(|user| user.primary_group_id())),
            None => {
                let user = uzers::get_user_by_name(user).ok_or_else(no_user)?;
                (user.uid(), Some(user.primary_group_id()))
            }
        };
        let gid = match group {
            Some(group) => find_group(group).ok_or_else(|| {
                error("find the group", "there is no such name", "give the name or number of a group")
            })?,
            None => own_gid.ok_or_else(|| {
                error("find the group", "this user has no entry", "give a group, too: UID:GID")
            })?,
        };
        Ok(Self { text: text.into(), uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// A group's number from its name or number.
pub(super) fn find_group(group: &str) -> Option<u32> {
    number(group).or_else(|| Some(uzers::get_group_by_name(group)?.gid()))
}

/// All but the number that means "no change" (setresuid(2)).
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number| number != u32::MAX)
}

impl User {
    /// Makes this thread run as this user, in its one group, for good.
    ///
    /// The process is undumpable then, unless the operator's sysctl fs.suid_dumpable says
    /// otherwise: other processes of this user cannot trace it. It can still open its own
    /// descriptors again through /proc/self/fd, which the kernel grants every process (Linux,
    /// fs/proc/fd.c, `proc_fd_permission`).
    ///
    /// # Errors
    /// The kernel's: this user is another, and the process may not change.
    pub(super) fn become_it(&self) -> Result<(), Error> {
        let error = |action, errno| {
            let remedy = "start as root, or as this user, or leave --user out";
            Error::new(format_args!("--user {}", self.text), action, errno, remedy)
        };
        let Self { uid, gid, .. } = *self;
        match set_thread_groups(&[]) {
            // Who is this user already keeps the groups that he has.
            Err(Errno::PERM) if rustix::process::geteuid() == uid && rustix::process::getegid() == gid => {}
            result => result.map_err(|errno| error("give up the other groups", errno))?,
        }
        set_thread_res_gid(gid, gid, gid).map_err(|errno| error("become the group", errno))?;
        set_thread_res_uid(uid, uid, uid).map_err(|errno| error("become the user", errno))
    }
}

/// Capabilities that no program could be given any more. Before the user changes, who cannot do
/// this.
pub(super) fn drop_bounding_set() -> State {
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETPCAP));
    if !may {
        // It bounds what execve gives, and that is nothing with no_new_privs.
        return State::On;
    }
    let dropped = (0..u64::BITS)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        // EINVAL: this kernel knows no more.
        .take_while(|&capability| capability_is_in_bounding_set(capability).is_ok())
        .try_for_each(remove_capability_from_bounding_set);
    state(dropped)
}

/// No program that this thread executes has more rights than it (`PR_SET_NO_NEW_PRIVS`), and it has
/// no capabilities.
pub(super) fn drop_all() -> State {
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    let dropped = set_no_new_privs(true)
        .and_then(|()| clear_ambient_capability_set())
        .and_then(|()| set_capabilities(None, none));
    state(dropped)
}

fn state(result: rustix::io::Result<()>) -> State {
    let remedy = "permit capset and prctl to this process";
    result.map_or_else(|errno| State::Off { cause: errno.to_string(), remedy }, |()| State::On)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> (u32, u32) {
        let user: User = text.parse().unwrap();
        (user.uid.as_raw(), user.gid.as_raw())
    }

    #[test]
    fn a_user_is_found_by_name_or_number_with_or_without_a_group() {
        assert_eq!(ids("root"), (0, 0));
        assert_eq!(ids("root:4242"), (0, 4242));
        assert_eq!(ids("4242:root"), (4242, 0));
        assert_eq!(ids("0"), (0, 0));
    }

    #[test]
    fn what_is_no_user_is_refused_with_a_remedy() {
        let error = |text: &str| text.parse::<User>().unwrap_err().to_string();
        let unknown = error("no-such-user");
        assert_eq!(
            unknown,
            "--user no-such-user: cannot find the user: there is no such name; give the name or number of a user"
        );
        assert!(error("root:no-such-group").contains("cannot find the group"));
        assert!(error("4242424242").contains("give a group, too"));
        // setresuid takes it for "as it is".
        assert!(error("4294967295").contains("cannot find the user"));
    }
}
