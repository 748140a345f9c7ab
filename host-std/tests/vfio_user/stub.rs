//! A device that does nothing, for what its thread owes the client and the operator.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blk_core::bus::{Access, Device, Progress, Region, Width, WriteStatus};
use blk_core::pci::{Bar, Endpoint, Function, Identity, MsixOwner, PciFunction, Permissions};
use host_std::memory::MappedMemory;
use host_std::server::vfio_user::CountedHandle;
use host_std::server::{Controller, ServeError, Server};

use super::Disk;

/// A device without images, with one BAR.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stub {
    /// Its work never ends, as a guest's processors may give it that fill one queue while another is worked on.
    pub(crate) restless: bool,
    /// What a register write costs.
    pub(crate) write_takes: Duration,
    /// What its driver has broken.
    pub(crate) fault: Option<&'static str>,
}

impl Stub {
    /// Serves it at the socket of `disk`.
    pub(crate) fn serve(self, disk: &Disk) -> (Controller, JoinHandle<Result<(), ServeError>>) {
        let device = Box::new(PciFunction::<_, 1>::new(self, MsixOwner::Embedder));
        disk.listen(Arc::new(Server::pci("stub", device, Vec::new()).unwrap()))
    }
}

impl Endpoint for Stub {
    fn function(&self) -> Function {
        let (capabilities, specific) = Default::default();
        let mut bars = [Bar::Absent; 6];
        bars[0] = Bar::Memory32 { bytes: 4096 };
        Function { identity: Identity::ICH9_AHCI, bars, capabilities, specific }
    }

    fn permit(&mut self, _: Permissions) {}

    fn fault(&self) -> Option<&'static str> {
        self.fault
    }
}

impl Device<MappedMemory, [CountedHandle]> for Stub {
    fn read(
        &mut self,
        _: Region,
        _: u64,
        _: Width,
        _: &MappedMemory,
        _: &mut [CountedHandle],
    ) -> Access<u64> {
        Access::quiet(0)
    }

    fn write(
        &mut self,
        _: Region,
        _: u64,
        _: Width,
        _: u64,
        _: &MappedMemory,
        _: &mut [CountedHandle],
    ) -> Access<WriteStatus> {
        std::thread::sleep(self.write_takes);
        Access::quiet(WriteStatus::Done)
    }

    fn poll(&mut self, _: &MappedMemory, _: &mut [CountedHandle]) -> Progress {
        Progress { again: self.restless, ..Progress::default() }
    }

    fn reset(&mut self, _: &MappedMemory, _: &mut [CountedHandle]) -> Progress {
        Progress::default()
    }
}
