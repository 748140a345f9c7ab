//! A guest of virtio-scsi, with one unit.

use std::path::PathBuf;
use std::time::Duration;

use scsi_model::front::virtio_scsi::Address;

use super::{
    BLOCK, Guest, Id, Outcome, Request, SECTORS_PER_BLOCK, Scsi, ScsiCommand, ScsiPayload, Ticket, Trouble,
    cdb, contents,
};

const UNIT: Address = Address { target: 0, lun: 0 };
/// SPC-4, sense key: the unit has something to say before it does the command.
const UNIT_ATTENTION: u8 = 6;
/// SBC-3, WRITE SAME (16): of one block of zeroes.
const WRITE_SAME_16: u8 = 0x93;

pub(crate) struct ScsiGuest {
    socket: PathBuf,
    limit: Duration,
    host: Option<Scsi>,
    /// Commands in flight; `true`: a read.
    in_flight: Vec<(Ticket, bool)>,
}

impl ScsiGuest {
    pub(crate) fn new(socket: PathBuf, limit: Duration) -> Self {
        Self { socket, limit, host: None, in_flight: Vec::new() }
    }

    fn host(&mut self) -> Result<&mut Scsi, Trouble> {
        self.host.as_mut().ok_or_else(|| Trouble::Lost("not connected".into()))
    }
}

impl Guest for ScsiGuest {
    fn connect(&mut self) -> Result<bool, Trouble> {
        match &mut self.host {
            Some(host) => {
                host.session_mut().reconnect()?;
                Ok(true)
            }
            None => {
                // The control and the event queue count as two.
                self.host = Some(Scsi::connect(&self.socket, super::options(3, self.limit))?);
                Ok(false)
            }
        }
    }

    fn leave(&mut self) {
        self.host = None;
        self.in_flight.clear();
    }

    fn submit(&mut self, request: &Request) -> Result<Id, Trouble> {
        let blocks = SECTORS_PER_BLOCK as u32;
        let lba = |block: u64| block * SECTORS_PER_BLOCK;
        let (data, parameters, zeroes, exchange);
        let (block, payload, read) = match *request {
            Request::Write { block, version, fua } => {
                data = contents(block, version);
                (cdb::write_16(lba(block), blocks, fua).to_vec(), ScsiPayload::Out(&data), false)
            }
            Request::Zero { block } => {
                zeroes = [0; 512];
                let mut same = cdb::write_16(lba(block), blocks, false);
                same[0] = WRITE_SAME_16;
                (same.to_vec(), ScsiPayload::Out(&zeroes), false)
            }
            Request::Exchange { block, from, to } => {
                exchange = [contents(block, from), contents(block, to)].concat();
                let block = cdb::compare_and_write(lba(block), blocks as u8, false);
                (block.to_vec(), ScsiPayload::Out(&exchange), false)
            }
            Request::Read { block } => {
                (cdb::read_16(lba(block), blocks, false).to_vec(), ScsiPayload::In(BLOCK as u32), true)
            }
            Request::Flush => (cdb::synchronize_cache_16().to_vec(), ScsiPayload::None, false),
            Request::CacheOff => {
                parameters = cdb::caching_page(false);
                (cdb::MODE_SELECT_6.to_vec(), ScsiPayload::Out(&parameters), false)
            }
        };
        let ticket = self.host()?.submit(Scsi::QUEUE, &ScsiCommand::new(UNIT, &block, payload))?;
        self.in_flight.push((ticket, read));
        Ok(ticket.sequence)
    }

    fn wait(&mut self) -> Result<(Id, Outcome), Trouble> {
        let done = self.host()?.wait(Scsi::QUEUE)?;
        let place = self.in_flight.iter().position(|(ticket, _)| *ticket == done.ticket);
        let place = place.ok_or_else(|| Trouble::Wrong("a command came back twice".into()))?;
        let (ticket, read) = self.in_flight.swap_remove(place);
        if done.sense.is_some_and(|sense| sense.key == UNIT_ATTENTION) {
            return Ok((ticket.sequence, Outcome::Again));
        }
        if !done.is_good() {
            return Ok((ticket.sequence, Outcome::Failed(format!("{done:?}"))));
        }
        let mut data = vec![0; if read { BLOCK } else { 0 }];
        self.host()?.data(ticket, &mut data);
        Ok((ticket.sequence, Outcome::Done(data)))
    }

    fn nothing_more(&mut self) -> Result<(), Trouble> {
        match self.host()?.poll(Scsi::QUEUE)? {
            Some(done) => Err(Trouble::Wrong(format!("{done:?} came back, and nothing was in flight"))),
            None => Ok(()),
        }
    }
}
