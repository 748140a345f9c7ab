//! Contents of a sector in the proof: one value in every byte.

use core::fmt;

use serde::{Deserialize, Serialize};

/// Value of both sectors before the program starts.
pub const INITIAL: u8 = 0xee;
/// Value after write-zeroes.
pub const ZEROES: u8 = 0;
/// Stands for a sector whose bytes are not all equal, or are of no step: nothing that a program writes.
pub const GARBAGE: u8 = 0xbd;
/// Most steps that a program may have, so that every value has a bit in a [`ValueSet`].
pub const STEPS_MAX: u8 = 60;

/// The value that step `id` writes.
#[must_use]
pub const fn written_by(id: u8) -> u8 {
    id.wrapping_add(1)
}

/// What a sector holds, named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contents {
    /// What was there before the program.
    Old,
    /// Zeroes.
    Zeroes,
    /// What this step wrote.
    Step(u8),
    /// What no step wrote.
    Garbage,
}

impl From<u8> for Contents {
    fn from(value: u8) -> Self {
        match value {
            INITIAL => Self::Old,
            ZEROES => Self::Zeroes,
            1..=STEPS_MAX => Self::Step(value.wrapping_sub(1)),
            _ => Self::Garbage,
        }
    }
}

impl From<Contents> for u8 {
    fn from(contents: Contents) -> Self {
        match contents {
            Contents::Old => INITIAL,
            Contents::Zeroes => ZEROES,
            Contents::Step(id) => written_by(id),
            Contents::Garbage => GARBAGE,
        }
    }
}

impl fmt::Display for Contents {
    /// `A` is what step 0 wrote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Old => f.write_str("the old data"),
            Self::Zeroes => f.write_str("zeroes"),
            Self::Step(id) => f.write_str(&step_name(id)),
            Self::Garbage => f.write_str("garbage"),
        }
    }
}

/// A field that is a value in the proof, and [`Contents`] where it is stored.
pub(super) mod named {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Contents;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    pub(in crate::sim) fn serialize<S: Serializer>(value: &u8, serializer: S) -> Result<S::Ok, S::Error> {
        Contents::from(*value).serialize(serializer)
    }

    pub(in crate::sim) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
        Contents::deserialize(deserializer).map(u8::from)
    }
}

/// The letter by which a step and its data go.
#[must_use]
pub fn step_name(id: u8) -> std::string::String {
    match id {
        0..26 => char::from(b'A'.wrapping_add(id)).into(),
        _ => std::format!("S{id}"),
    }
}

/// A set of sector values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct ValueSet(u64);

impl ValueSet {
    /// Nothing.
    pub const EMPTY: Self = Self(0);

    /// One value. What no program writes counts as [`GARBAGE`].
    #[must_use]
    pub const fn of(value: u8) -> Self {
        let bit = match value {
            INITIAL => 63,
            0..=STEPS_MAX => value,
            _ => 62,
        };
        Self(1 << bit)
    }

    /// The values of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The values of this that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `value` is in the set.
    #[must_use]
    pub const fn contains(self, value: u8) -> bool {
        self.0 & Self::of(value).0 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The values, zeroes first and the initial data last.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..64_u8).filter(move |bit| self.0 & (1 << bit) != 0).map(|bit| match bit {
            63 => INITIAL,
            62 | 61 => GARBAGE,
            value => value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_name_of_its_own() {
        for value in (0..=STEPS_MAX).chain([INITIAL, GARBAGE]) {
            assert_eq!(u8::from(Contents::from(value)), value);
        }
    }

    #[test]
    fn every_value_has_a_bit_of_its_own() {
        let values = (0..=STEPS_MAX).chain([INITIAL, GARBAGE]);
        let all = values.clone().fold(ValueSet::EMPTY, |set, value| set.with(ValueSet::of(value)));
        assert_eq!(all.iter().count(), values.clone().count());
        for value in values {
            assert_eq!(ValueSet::of(value).iter().collect::<std::vec::Vec<_>>(), [value]);
            assert!(!all.without(ValueSet::of(value)).contains(value));
        }
        assert_eq!(ValueSet::of(0xdb), ValueSet::of(GARBAGE), "what nobody writes is garbage");
    }
}
