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

/// Several pieces of a program, one after the other.
pub fn join<A: Copy>(pieces: &[&[A]]) -> Vec<A> {
    pieces.concat()
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

/// An enum that is read from one byte, taken modulo the number of variants, and its fields in order. After its own variants it may
/// have those of another such enum, in a variant of the last: `..Variant(Type)`.
///
/// The derived `Arbitrary` spends four bytes on the variant, and has no inverse.
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$doc:meta])* $variant:ident $({ $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? })?,)*
        $(..$rest:ident($rest_ty:ty))?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant $({ $($(#[$field_doc])* $field: $ty),* })?,)*
            $($rest($rest_ty))?
        }

        impl $name {
            const OWN: u8 = {
                #[allow(dead_code, non_camel_case_types, clippy::upper_case_acronyms)]
                enum Index { $($variant,)* COUNT }
                Index::COUNT as u8
            };
            /// How many variants there are.
            pub const CHOICES: u8 = Self::OWN $(+ <$rest_ty>::CHOICES)?;

            /// Reads the fields of a variant.
            pub fn nth(choice: u8, bytes: &mut arbitrary::Unstructured<'_>) -> arbitrary::Result<Self> {
                #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
                enum Index { $($variant,)* }
                $(if choice == Index::$variant as u8 {
                    return Ok(Self::$variant $({ $($field: arbitrary::Arbitrary::arbitrary(bytes)?),* })?);
                })*
                $(return Ok(Self::$rest(<$rest_ty>::nth(choice - Self::OWN, bytes)?));)?
                #[allow(unreachable_code)]
                { unreachable!("a choice is smaller than their number") }
            }

            /// Appends what [`Self::nth`] reads, and before it the variant, where the first one has the number `first`.
            pub fn put_from(&self, first: u8, out: &mut Vec<u8>) {
                #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
                enum Index { $($variant,)* }
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        out.push(first + Index::$variant as u8);
                        $($($crate::program::Seed::put($field, out);)*)?
                    })*
                    $(Self::$rest(rest) => <$rest_ty>::put_from(rest, first + Self::OWN, out),)?
                }
            }
        }

        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(bytes: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                let choice = u8::arbitrary(bytes)? % Self::CHOICES;
                Self::nth(choice, bytes)
            }
        }

        impl $crate::program::Seed for $name {
            fn put(&self, out: &mut Vec<u8>) {
                self.put_from(0, out);
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
        pub enum Step { Stop, Go { far: u16, fast: bool }, ..Rest(Turn) }
    }
    choices! {
        /// For the test.
        pub enum Turn { Back, Turn { by: u8 }, }
    }
    record! {
        /// For the test.
        pub struct Start { pub at: u32, pub flags: [bool; 2], }
    }

    #[test]
    fn what_is_put_is_read_back() {
        let start = Start { at: 0x0102_0304, flags: [true, false] };
        let (back, turn) = (Step::Rest(Turn::Back), Step::Rest(Turn::Turn { by: 255 }));
        let steps = [Step::Go { far: 513, fast: true }, Step::Stop, turn, back, Step::Stop];
        let bytes = seed(&start, &steps);
        assert_eq!(bytes[6..], [1, 1, 2, 1, 0, 3, 255, 2, 0], "as if it had all variants itself");
        assert_eq!(parse::<Start, Step>(&bytes), Some((start, steps.to_vec())));
    }
}
