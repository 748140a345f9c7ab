//! What the crash explorer is asked about a front, whatever its registers.

use std::fmt::Debug;

use ata_model::sim::{AhciConfig, AhciGuest, DriverConfig, IdeGuest};
use blk_core::sim::{Cell, Report, SAFE_MODES, SimGuest, SimHandle, SimMemory, explore_all, sample_all};
use blk_core::storage::CacheMode;

/// A kind of driver, with the front that it drives.
pub trait Driver: Copy + Debug {
    type Guest: SimGuest;

    fn boot(self, memory: &SimMemory, storage: &mut [SimHandle]) -> Self::Guest;

    fn explore(self, cell: &Cell) -> Report {
        let report = explore_all(&|memory, storage| self.boot(memory, storage), cell);
        let Cell { disk, length, .. } = cell;
        let (fua, explored) = (disk.native_fua, report.explored);
        println!("{self:?} {:?} length={length} fua={fua} {explored:?} {:?}", disk.mode, report.elapsed);
        report
    }
}

impl Driver for DriverConfig {
    type Guest = IdeGuest;

    fn boot(self, memory: &SimMemory, storage: &mut [SimHandle]) -> IdeGuest {
        IdeGuest::boot(self, memory, storage)
    }
}

impl Driver for AhciConfig {
    type Guest = AhciGuest;

    fn boot(self, memory: &SimMemory, storage: &mut [SimHandle]) -> AhciGuest {
        AhciGuest::boot(self, memory, storage)
    }
}

/// Programs of the length that `length` has for a mode, with native FUA or without.
pub fn assert_safe_in_every_mode(driver: impl Driver, length: impl Fn(CacheMode, bool) -> u8) {
    for mode in SAFE_MODES {
        for native_fua in [false, true] {
            let mut cell = Cell::new(mode, length(mode, native_fua));
            cell.disk.native_fua = native_fua;
            driver.explore(&cell).assert_safe();
        }
    }
}

pub fn assert_unsafe_loses(driver: impl Driver) {
    let report = driver.explore(&Cell::new(CacheMode::Unsafe, 2));
    assert!(report.counterexample().is_some());
}

/// Long programs, walked at random.
pub fn assert_walks_are_safe(driver: impl Driver) {
    let cell = Cell { power_cuts: 2, ..Cell::new(CacheMode::WriteBack, 8) };
    sample_all(&|memory, storage| driver.boot(memory, storage), &cell, 300).assert_safe();
}

#[cfg(feature = "mutants")]
pub mod mutants {
    use blk_core::mutant::{Mutant, set};

    use super::*;

    /// The mutants whose rule any ATA front can break.
    pub const CAUGHT: [Mutant; 15] = [
        Mutant::FlushWithoutHostFlush,
        Mutant::WriteAckedAtSubmission,
        Mutant::FuaIgnored,
        Mutant::CacheOffIgnored,
        Mutant::FuaFlushBesideWrite,
        Mutant::AtOnceTakenAsStable,
        Mutant::FlushErrorSwallowed,
        Mutant::FlushErrorForgotten,
        Mutant::ResetWithoutDrain,
        Mutant::FlushSkippedByGeneration,
        Mutant::CacheOffWithoutFlush,
        Mutant::DirectTakenAsDurable,
        Mutant::DsyncDropped,
        Mutant::HalfWrite,
        Mutant::ResetReexecutes,
    ];

    pub fn assert_caught(mutant: Mutant, driver: impl Driver) {
        set(Some(mutant));
        let reports = (1..=3).map(|length| driver.explore(&Cell::showing(mutant, length)));
        let found = reports.filter_map(|report| report.counterexample().cloned()).next();
        set(None);
        match found {
            Some(counterexample) => println!("{mutant:?}, {driver:?}:\n{counterexample}"),
            None => panic!("{mutant:?} is not caught by {driver:?}"),
        }
    }
}
