//! Rules of a filter: calls, and what their arguments have to be.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Calls, each with the rules of which one must hold; without rules, in any way.
pub(super) type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// A rule that holds if an argument of 32 bits is this.
pub(super) fn is(argument: u8, value: u32) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
}

/// A rule that holds if an argument of 32 bits is not this.
pub(super) fn is_not(argument: u8, value: u32) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value.into())
}

/// A rule that holds if the bits of `mask` in the lower half of an argument are these.
pub(super) fn has_bits(argument: u8, mask: u32, bits: u32) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask.into()), bits.into())
}

/// A rule that holds if an argument is a null pointer.
pub(super) fn is_null(argument: u8) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

fn rule(
    argument: u8,
    len: SeccompCmpArgLen,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, len, op, value)?])
}
