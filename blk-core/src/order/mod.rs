//! Order and durability: what a request needs ([`plan`]), and the bookkeeping that sees it through ([`Sequencer`]).

mod plan;
mod sequencer;
mod slot_set;
#[cfg(test)]
mod tests;

pub use plan::{GuestCache, Order, Plan, Request, plan};
pub use sequencer::{Deferred, Done, Sequencer, Started};
