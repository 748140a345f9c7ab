//! Arguments that come in with a poll.

use super::policy::Policy;

/// What comes in with a poll.
pub(super) struct Io<'a, M: ?Sized, H, I> {
    pub(super) memory: &'a M,
    pub(super) storage: &'a mut [H],
    pub(super) policy: &'a Policy,
    pub(super) logs: &'a mut [I],
}
