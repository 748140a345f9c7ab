//! SMART: its state, and the pages that it reads out. The model has no attributes; nothing wears out here.

use zerocopy::little_endian::U16;
use zerocopy::transmute_mut;

use super::log::{Page, directory, sum_up};
use crate::wire::{SelfTestLog, SmartData, SummaryErrorLog};

/// Entries of the self-test log.
const SELF_TESTS: usize = 21;

/// SMART state. It outlives resets, as it does in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Smart {
    /// SMART ENABLE / DISABLE OPERATIONS.
    pub enabled: bool,
    /// Newest entry of the self-test log, 1 to 21; 0 for none.
    newest: u8,
    /// The tests in the log, by their selectors.
    tests: [u8; SELF_TESTS],
}

impl Smart {
    /// SMART of a new drive: enabled, no test logged.
    pub const NEW: Self = Self { enabled: true, newest: 0, tests: [0; SELF_TESTS] };

    /// Runs a self-test, which ends at once and finds nothing, and logs it.
    ///
    /// The index goes from 21 back to 1, not to 0, and never leaves the log (CVE-2014-2894).
    pub fn self_test(&mut self, selector: u8) {
        self.newest = if usize::from(self.newest) < SELF_TESTS { self.newest.saturating_add(1) } else { 1 };
        if let Some(test) = self.tests.get_mut(usize::from(self.newest).saturating_sub(1)) {
            *test = selector;
        }
    }

    /// SMART READ DATA, as in all of these into a page of zeroes.
    pub(super) fn data(page: &mut Page) {
        let data: &mut SmartData = transmute_mut!(page);
        data.revision = U16::new(0x10);
        // SMART EXECUTE OFF-LINE IMMEDIATE, which self-tests are begun by, and they.
        data.offline_capability = 0x11;
        data.capability = U16::new(3);
        data.error_logging = 1;
        data.short_test_minutes = 1;
        data.extended_test_minutes = 1;
        sum_up(page);
    }

    /// SMART READ THRESHOLDS, which no standard after ATA-3 has and every monitoring tool sends.
    pub(super) fn thresholds(page: &mut Page) {
        let data: &mut SmartData = transmute_mut!(page);
        data.revision = U16::new(0x10);
        sum_up(page);
    }

    /// The single page of the SMART log at `address`; `None` if there is no such log.
    pub(super) fn log(&self, address: u8, page: &mut Page) -> Option<()> {
        match address {
            0x00 => {
                directory(page, &[0x01, 0x06]);
                return Some(());
            }
            0x01 => {
                let log: &mut SummaryErrorLog = transmute_mut!(page);
                log.version = 1;
            }
            0x06 => {
                let log: &mut SelfTestLog = transmute_mut!(page);
                log.revision = U16::new(1);
                log.index = self.newest;
                for (entry, &test) in log.entries.iter_mut().zip(&self.tests) {
                    entry.test = test;
                }
            }
            _ => return None,
        }
        sum_up(page);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2014-2894.
    #[test]
    fn the_self_test_index_wraps_from_21_to_1_and_stays_in_the_log() {
        let mut smart = Smart::NEW;
        for run in 0..64_u8 {
            smart.self_test(1);
            assert_eq!(smart.newest, run % 21 + 1);
            let mut log = [0; 512];
            smart.log(6, &mut log).unwrap();
            assert_eq!(log[508], smart.newest);
        }
    }

    #[test]
    fn every_page_with_a_checksum_adds_up_to_zero() {
        let smart = Smart::NEW;
        let mut pages = [[0; 512]; 4];
        let [data, thresholds, errors, tests] = &mut pages;
        Smart::data(data);
        Smart::thresholds(thresholds);
        smart.log(1, errors).unwrap();
        smart.log(6, tests).unwrap();
        for page in pages {
            assert_eq!(page.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)), 0);
        }
        assert_eq!(smart.log(2, &mut [0; 512]), None);
    }
}
