//! How records are printed: columns, or a format string. Pure but for the writer it is given.

use std::io::{self, Write};

use clap::ValueEnum;
use millrace_engine::batch::Record;

use crate::time;

/// A part of a record that can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Field {
    Topic,
    Partition,
    Offset,
    Timestamp,
    Key,
    Headers,
}

/// One piece of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Field(Field),
    /// Timestamp in ms.
    Millis,
    Value,
    KeySize,
    ValueSize,
}

/// A parsed format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordFormat(Vec<Piece>);

/// Where a record comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
}

/// What is printed for no key or no value.
const NULL: &[u8] = b"null";

impl RecordFormat {
    /// These fields, then the value, separated by tabulators, and the end of the line.
    pub(crate) fn columns(fields: &[Field]) -> Self {
        let mut pieces = Vec::new();
        for field in fields {
            pieces.push(Piece::Field(*field));
            pieces.push(Piece::Text(b"\t".to_vec()));
        }
        pieces.push(Piece::Value);
        pieces.push(Piece::Text(b"\n".to_vec()));
        Self(pieces)
    }

    /// Parses a format string.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '%' => {
                    let piece = match letters.next() {
                        Some('%') => {
                            plain.push(b'%');
                            continue;
                        }
                        Some(name) => placeholder(name)?,
                        None => return Err("--format ends in a single %; write %% for a percent sign".to_owned()),
                    };
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(piece);
                }
                '\\' => plain.push(escape(letters.next())?),
                other => plain.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// Prints a record.
    pub(crate) fn write(&self, context: &Context<'_>, record: &Record, out: &mut impl Write) -> io::Result<()> {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.write_all(text)?,
                Piece::Field(field) => write_field(*field, context, record, out)?,
                Piece::Millis => write!(out, "{}", record.timestamp)?,
                Piece::Value => out.write_all(record.value.as_deref().unwrap_or(NULL))?,
                Piece::KeySize => write_size(record.key.as_deref(), out)?,
                Piece::ValueSize => write_size(record.value.as_deref(), out)?,
            }
        }
        Ok(())
    }
}

fn placeholder(name: char) -> Result<Piece, String> {
    Ok(match name {
        't' => Piece::Field(Field::Topic),
        'p' => Piece::Field(Field::Partition),
        'o' => Piece::Field(Field::Offset),
        'd' => Piece::Field(Field::Timestamp),
        'T' => Piece::Millis,
        'k' => Piece::Field(Field::Key),
        'h' => Piece::Field(Field::Headers),
        'v' | 's' => Piece::Value,
        'K' => Piece::KeySize,
        'V' | 'S' => Piece::ValueSize,
        other => return Err(format!("--format knows no %{other}; see 'millrace help consume'")),
    })
}

fn escape(letter: Option<char>) -> Result<u8, String> {
    match letter {
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('r') => Ok(b'\r'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some(other) => Err(format!("--format knows no \\{other}: \\n, \\t, \\r, \\0 and \\\\ it does")),
        None => Err("--format ends in a single \\; write \\\\ for a backslash".to_owned()),
    }
}

fn write_field(field: Field, context: &Context<'_>, record: &Record, out: &mut impl Write) -> io::Result<()> {
    match field {
        Field::Topic => write!(out, "{}", context.topic),
        Field::Partition => write!(out, "{}", context.partition),
        Field::Offset => write!(out, "{}", record.offset),
        Field::Timestamp => write!(out, "{}", time::format(record.timestamp)),
        Field::Key => out.write_all(record.key.as_deref().unwrap_or(NULL)),
        Field::Headers => {
            for (at, (name, value)) in record.headers.iter().enumerate() {
                out.write_all(if at == 0 { b"" } else { b"," })?;
                out.write_all(name)?;
                out.write_all(b"=")?;
                out.write_all(value.as_deref().unwrap_or(NULL))?;
            }
            Ok(())
        }
    }
}

fn write_size(bytes: Option<&[u8]>, out: &mut impl Write) -> io::Result<()> {
    match bytes {
        Some(bytes) => write!(out, "{}", bytes.len()),
        None => write!(out, "-1"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn printed(format: &RecordFormat, record: &Record) -> String {
        let mut out = Vec::new();
        format.write(&Context { topic: "t", partition: 3 }, record, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn record() -> Record {
        Record {
            offset: 7,
            timestamp: 951_827_696_789,
            key: Some(Bytes::from("key")),
            value: Some(Bytes::from("value")),
            headers: vec![(Bytes::from("a"), Some(Bytes::from("1"))), (Bytes::from("b"), None)],
        }
    }

    #[test]
    fn columns_come_before_the_value() {
        assert_eq!(printed(&RecordFormat::columns(&[]), &record()), "value\n");
        let all = [Field::Topic, Field::Partition, Field::Offset, Field::Timestamp, Field::Key, Field::Headers];
        assert_eq!(
            printed(&RecordFormat::columns(&all), &record()),
            "t\t3\t7\t2000-02-29T12:34:56.789Z\tkey\ta=1,b=null\tvalue\n"
        );
    }

    #[test]
    fn format_strings_know_every_part() {
        let format = RecordFormat::parse("%t/%p@%o %T %d %k(%K)=%v(%V) [%h] 100%%ü\\t\\\\\\n").unwrap();
        assert_eq!(
            printed(&format, &record()),
            "t/3@7 951827696789 2000-02-29T12:34:56.789Z key(3)=value(5) [a=1,b=null] 100%ü\t\\\n"
        );
        let tombstone = Record { key: None, value: None, headers: Vec::new(), ..record() };
        assert_eq!(printed(&RecordFormat::parse("%k %K %s %S").unwrap(), &tombstone), "null -1 null -1");
    }

    #[test]
    fn unknown_placeholders_are_refused() {
        for bad in ["%", "%x", "\\", "\\q"] {
            assert!(RecordFormat::parse(bad).is_err(), "{bad}");
        }
    }
}
