//! Exit statuses.

/// A cell that must be safe is not, a stack is known to be unsafe, a last flush failed, an operator's command was refused, or the
/// demonstration lost a file that had been synced.
pub(crate) const EXIT_UNSAFE: u8 = 1;
/// The operator asked for something that cannot be done.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Stopped by SIGINT or SIGTERM, as shells report it for SIGINT.
pub(crate) const EXIT_STOPPED: u8 = 130;
