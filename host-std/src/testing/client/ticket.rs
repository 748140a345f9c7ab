//! The name of a request.

/// Names a request that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The queue it is on.
    pub queue: u16,
    /// Its slot: below the ring's size, and no other request's until it has completed.
    pub slot: u16,
    /// Counts the requests of a session.
    pub sequence: u64,
}
