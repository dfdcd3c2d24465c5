//! What is printed, at which depth, and how much damage there was.

use std::{
    fmt::Display,
    io::{BufWriter, StdoutLock, Write, stdout},
    path::Path,
};

use crate::failure::{Failure, Outcome};

/// See the module.
pub(super) struct Report {
    out: BufWriter<StdoutLock<'static>>,
    batches: bool,
    records: bool,
    damages: u64,
}

impl Report {
    pub(super) fn new(batches: bool, records: bool) -> Self {
        Self { out: BufWriter::new(stdout().lock()), batches, records, damages: 0 }
    }

    /// Whether a line for each record is wanted.
    pub(super) fn wants_records(&self) -> bool {
        self.records
    }

    /// A new file.
    pub(super) fn begin(&mut self, path: &Path) -> Outcome {
        Ok(writeln!(self.out, "{}", path.display())?)
    }

    /// A line about the file as a whole.
    pub(super) fn line(&mut self, text: impl Display) -> Outcome {
        Ok(writeln!(self.out, "  {text}")?)
    }

    /// A line about one group, batch or journal record.
    pub(super) fn detail(&mut self, text: impl Display) -> Outcome {
        match self.batches {
            true => Ok(writeln!(self.out, "    {text}")?),
            false => Ok(()),
        }
    }

    /// A line about a record. Bytes that are no text are shown escaped.
    pub(super) fn record(&mut self, text: impl Display) -> Outcome {
        match self.records {
            true => Ok(writeln!(self.out, "      {text}")?),
            false => Ok(()),
        }
    }

    /// Something that was promised to be whole is not.
    pub(super) fn damage(&mut self, text: impl Display) -> Outcome {
        self.damages += 1;
        Ok(writeln!(self.out, "  DAMAGED: {text}")?)
    }

    /// The verdict. Nobody can tell damage from what is half written while it is `being_written`.
    pub(super) fn finish(mut self, being_written: bool) -> Outcome {
        match self.damages {
            0 => writeln!(self.out, "no damage found")?,
            1 => writeln!(self.out, "1 damage found")?,
            many => writeln!(self.out, "{many} damages found")?,
        }
        if being_written && self.damages > 0 {
            writeln!(self.out, "a broker is writing here: stop it and look again")?;
        }
        self.out.flush()?;
        match self.damages {
            0 => Ok(()),
            _ if being_written => Ok(()),
            _ => Err(Failure::Reported),
        }
    }
}
