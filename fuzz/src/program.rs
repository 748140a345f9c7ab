//! Programs of actions: read from a fuzzer's bytes, front to back, and written back into bytes as seeds.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary::{Arbitrary, Unstructured};

static PRINT: AtomicBool = AtomicBool::new(false);

/// From now on [`parse`] prints what it reads.
pub fn print_programs() {
    PRINT.store(true, Ordering::Relaxed);
}

/// The inverse of [`Arbitrary`], for the seeds.
pub trait Seed {
    /// Appends the bytes that [`Arbitrary::arbitrary`] reads this value from.
    fn put(&self, out: &mut Vec<u8>);
}

macro_rules! seed_integers {
    ($($ty:ty)*) => { $(
        impl Seed for $ty {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )* };
}
seed_integers!(u8 u16 u32 u64);

impl Seed for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl<T: Seed, const N: usize> Seed for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.put(out));
    }
}

/// A setup and the actions after it, as the bytes that [`parse`] reads.
pub fn seed<S: Seed, A: Seed>(setup: &S, actions: &[A]) -> Vec<u8> {
    let mut out = Vec::new();
    setup.put(&mut out);
    actions.iter().for_each(|action| action.put(&mut out));
    out
}

/// A setup and the actions after it, as many as the bytes hold. `None` if there are too few for a setup.
///
/// Unlike `Vec`'s `Arbitrary` this has no length or "more" byte: a byte inserted by the fuzzer shifts what follows, and
/// nothing else.
pub fn parse<'a, S, A>(data: &'a [u8]) -> Option<(S, Vec<A>)>
where
    S: Arbitrary<'a> + Debug,
    A: Arbitrary<'a> + Debug,
{
    const ACTIONS_MAX: usize = 1024;
    let mut bytes = Unstructured::new(data);
    let setup = S::arbitrary(&mut bytes).ok()?;
    let mut actions = Vec::new();
    while !bytes.is_empty() && actions.len() < ACTIONS_MAX {
        actions.push(A::arbitrary(&mut bytes).ok()?);
    }
    if PRINT.load(Ordering::Relaxed) {
        eprintln!("{setup:?}");
        actions.iter().for_each(|action| eprintln!("    {action:?}"));
    }
    Some((setup, actions))
}

/// An enum that is read from one byte, taken modulo the number of variants, and its fields in order.
///
/// The derived `Arbitrary` spends four bytes on the variant, and has no inverse.
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$doc:meta])* $variant:ident $({ $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? })?,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant $({ $($(#[$field_doc])* $field: $ty),* })?,)*
        }

        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(bytes: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
                enum Index { $($variant,)* COUNT }
                let choice = u8::arbitrary(bytes)? % (Index::COUNT as u8);
                $(if choice == Index::$variant as u8 {
                    return Ok(Self::$variant $({ $($field: arbitrary::Arbitrary::arbitrary(bytes)?),* })?);
                })*
                unreachable!("a choice is smaller than their number")
            }
        }

        impl $crate::program::Seed for $name {
            fn put(&self, out: &mut Vec<u8>) {
                #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
                enum Index { $($variant,)* }
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        out.push(Index::$variant as u8);
                        $($($crate::program::Seed::put($field, out);)*)?
                    })*
                }
            }
        }
    };
}

/// A struct that is read from its fields in order, and written back.
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, arbitrary::Arbitrary)]
        pub struct $name { $($(#[$doc])* pub $field: $ty,)* }

        impl $crate::program::Seed for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::program::Seed::put(&self.$field, out);)*
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    choices! {
        /// For the test.
        pub enum Step { Stop, Go { far: u16, fast: bool }, Turn { by: u8 }, }
    }
    record! {
        /// For the test.
        pub struct Start { pub at: u32, pub flags: [bool; 2], }
    }

    #[test]
    fn what_is_put_is_read_back() {
        let start = Start { at: 0x0102_0304, flags: [true, false] };
        let steps = [Step::Go { far: 513, fast: true }, Step::Stop, Step::Turn { by: 255 }, Step::Stop];
        assert_eq!(parse::<Start, Step>(&seed(&start, &steps)), Some((start, steps.to_vec())));
    }
}
