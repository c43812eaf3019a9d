//! A pipeline made ready to run: the source opened, the chain compiled, the batch laid out, the memory summed up.

use std::collections::BTreeMap;
use std::sync::Arc;

use fuelrail_connectors::{IndexedSource, Opening, Schema, SourceConfig};

use crate::config::{OnError, PipelineConfig, Sampling};
use crate::engine::flow::Flows;
use crate::fields::{self, Fields};
use crate::layout::{Column, Layout};
use crate::order::Order;
use crate::ordering::{self, Ordered};
use crate::plan::Batching;
use crate::protocol::{ErrorKind, StreamKind};
use crate::refusal::Refusal;
use crate::ring::PAGE;
use crate::token::{Identity, in_few_words};

/// An open source, which several pipelines may share.
#[derive(Clone)]
pub enum Opened {
    /// Records by index.
    Indexed(Arc<dyn IndexedSource>),
    /// Records in windows.
    Stream(Arc<Flows>),
}

impl Opened {
    /// Opens what is configured.
    ///
    /// # Errors
    /// With [`ErrorKind::Config`] or [`ErrorKind::Source`].
    pub fn open(config: &SourceConfig, opening: &Opening) -> Result<Self, Refusal> {
        let opened = config.resolve().and_then(|config| match config {
            SourceConfig::Kafka(config) => fuelrail_connectors::open_stream_watched(&config, opening)
                .map(|source| Self::Stream(Flows::new(source))),
            config => fuelrail_connectors::open_watched(&config, opening).map(Self::Indexed),
        });
        opened.map_err(Refusal::of_source)
    }

    fn no_image(&self) -> Option<String> {
        match self {
            Self::Indexed(source) => source.no_image(),
            Self::Stream(_) => None,
        }
    }
}

/// Where a pipeline's records come from, and in which order.
pub enum Supply {
    /// Every epoch has the same records, each at the position that the order says.
    Indexed {
        /// Opened.
        source: Arc<dyn IndexedSource>,
        /// Which record comes where.
        order: Order,
    },
    /// Records come in windows, each in an order of its own.
    Stream {
        /// Its readings, shared by ranks.
        flows: Arc<Flows>,
        /// What the orders of windows are made of.
        seed: u64,
        /// Whether windows are shuffled.
        shuffle: bool,
    },
}

impl Supply {
    /// Records in an epoch, if that is known.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Indexed { order, .. } => Some(order.len()),
            Self::Stream { .. } => None,
        }
    }

    /// Epochs that there are, if not any number.
    pub fn epochs(&self) -> Option<u64> {
        match self {
            Self::Indexed { order, .. } => order.epochs(),
            Self::Stream { .. } => None,
        }
    }

    /// Never: an empty source is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Whether records have labels.
    pub fn is_labelled(&self) -> bool {
        match self {
            Self::Indexed { source, .. } => source.is_labelled(),
            Self::Stream { flows, .. } => flows.source().is_labelled(),
        }
    }

    /// Class names in label order.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Indexed { source, .. } => source.classes(),
            Self::Stream { flows, .. } => flows.source().classes(),
        }
    }

    /// What a client needs to know of a stream.
    pub fn stream_kind(&self) -> Option<StreamKind> {
        let Self::Stream { flows, .. } = self else { return None };
        let source = flows.source();
        Some(StreamKind { bounded: source.is_bounded(), origin: source.origin(0).into() })
    }

    /// The name of the record with this number, as `batch["index"]` has it.
    pub fn key(&self, id: i64) -> Option<String> {
        match self {
            Self::Indexed { source, .. } => {
                u64::try_from(id).ok().filter(|&index| index < source.len()).map(|index| source.key(index))
            }
            Self::Stream { flows, .. } => flows.source().key(id),
        }
    }
}

/// How the refusal of transforms begins where there are no images.
pub const NO_IMAGES: &str = "transforms and dtype are for images, and this source has none";

/// Refuses what is for images alone where records have none.
fn has_images(config: &PipelineConfig, schema: &Schema, source: &Opened) -> Result<(), Refusal> {
    if schema.image || (config.transforms.is_empty() && config.dtype.is_none()) {
        return Ok(());
    }
    let fields: Vec<_> = schema.fields.iter().map(|field| field.name.as_str()).collect();
    Err(Refusal::new(
        ErrorKind::Config,
        format!(
            "{NO_IMAGES} (its fields: {}){}: leave them out, or name the \
             column or array that holds images with image=",
            fields.join(", "),
            source.no_image().map_or(String::new(), |why| format!("; {why}")),
        ),
    ))
}

/// Everything about a pipeline that does not depend on rank and cursor.
pub struct Pipeline {
    /// As configured.
    pub config: PipelineConfig,
    /// Opened.
    pub supply: Supply,
    /// What its batches hold, and how it is made of records.
    pub fields: Fields,
    /// What tokens are checked against.
    pub identity: Identity,
    /// Worker threads.
    pub threads: usize,
    /// Feeds that use these threads alike, this one among them.
    pub sharers: usize,
}

impl Pipeline {
    /// Opens what `config` names. `source` is one that is open already (another rank's, another epoch's), if any.
    ///
    /// # Errors
    /// With [`ErrorKind::Config`] or [`ErrorKind::Source`].
    pub fn open(config: PipelineConfig, source: Option<Opened>) -> Result<Self, Refusal> {
        Self::open_watched(config, source, &Opening::new())
    }

    /// As [`open`](Self::open), for someone who watches it or may cancel it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_watched(
        config: PipelineConfig,
        source: Option<Opened>,
        opening: &Opening,
    ) -> Result<Self, Refusal> {
        let refuse = |message| Refusal::new(ErrorKind::Config, message);
        config.check().map_err(refuse)?;
        // Before the source, whose opening may take long: a mistake in the fields shows at once.
        fields::check(&config).map_err(refuse)?;
        let source = match source {
            Some(source) => source,
            None => Opened::open(&config.source_of_fields(), opening)?,
        };
        let (schema, is_labelled, size) = match &source {
            Opened::Indexed(source) => (source.schema(), source.is_labelled(), source.image_size()),
            Opened::Stream(flows) => (flows.source().schema(), flows.source().is_labelled(), None),
        };
        match &config.fields {
            // Fields have names of their own.
            Some(_) => schema.check_shapes(),
            None => schema.check(is_labelled),
        }
        .map_err(|message| Refusal::new(ErrorKind::Source, message))?;
        if config.on_error == OnError::Fail
            && let Opened::Indexed(source) = &source
            && let Some(missing) = source.missing()
        {
            return Err(Refusal::new(
                ErrorKind::Source,
                format!("{missing}. (on_error = \"fail\" allows no loss; any other setting only warns.)"),
            ));
        }
        if config.fields.is_none() {
            has_images(&config, &schema, &source)?;
        }
        let fields = Fields::compile(&config, &schema, size).map_err(refuse)?;
        let mut chosen = BTreeMap::new();
        if let left @ [_, ..] = &fields.left_behind()[..] {
            tracing::warn!(
                "{} stay as they are in the source while transforms move the images: fields of type Boxes and \
                 Keypoints follow their image",
                left.join(", ")
            );
        }
        let (supply, dataset, order) = match source {
            Opened::Indexed(source) => {
                let Ordered { order, fingerprint, chosen: of_order } = ordering::order(&config, &*source)?;
                let all = source.chosen().into_iter().chain(of_order);
                chosen.extend(all.map(|(key, value)| (key.to_owned(), in_few_words(&value))));
                let dataset = source.fingerprint();
                (Supply::Indexed { source, order }, dataset, fingerprint)
            }
            Opened::Stream(flows) => {
                let (dataset, fingerprint) = (flows.source().fingerprint(), ordering::of_stream(&config)?);
                let (seed, shuffle) = (config.seed, config.shuffle);
                (Supply::Stream { flows, seed, shuffle }, dataset, fingerprint)
            }
        };
        let identity = Identity {
            dataset: dataset.to_string(),
            order,
            pixels: config.pixels_fingerprint(fields.image_dtype()),
            seed: config.seed,
            samples: supply.len(),
            chosen,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if config.num_workers == 0 { cores } else { config.num_workers as usize };
        Ok(Self { config, supply, fields, identity, threads, sharers: 1 })
    }

    /// How epochs are cut for a number of ranks.
    ///
    /// # Errors
    /// When no batch would ever come.
    pub fn batching(&self, world_size: u64) -> Result<Batching, Refusal> {
        let refuse = |message| Err(Refusal::new(ErrorKind::Config, message));
        if world_size == 0 || world_size > 1 << 20 {
            return refuse(format!("world_size = {world_size} is not between 1 and {}", 1 << 20));
        }
        let (len, batch_size) = (self.supply.len(), self.config.batch_size);
        // A batch per class that is not whole would be none.
        let together = matches!(self.config.sampling, Some(Sampling::PerClass { .. }));
        let drop_last = self.config.drop_last || together;
        let (foreseen, epochs) = (len.is_some(), self.supply.epochs());
        let batching = Batching { len, batch_size, world_size, drop_last, foreseen, together, epochs };
        if let Some(len) = len
            && batching.batches_from(0) == Some(0)
        {
            let why = if together { "sampling.per_class has whole batches only, and" } else { "drop_last" };
            return refuse(format!(
                "{why} leaves no batch: {len} samples are fewer than batch_size {batch_size} x world_size {world_size}"
            ));
        }
        Ok(batching)
    }

    /// Slots in a feed's ring: what is kept ahead, one in the consumer's hands, one being filled.
    pub fn slots(&self) -> usize {
        self.config.prefetch_factor as usize + 2
    }

    /// How a batch of at most `rows` rows lies in a slot.
    pub fn layout(&self, rows: u64) -> Layout {
        let mut columns = vec![Column::Index, Column::Position, Column::Substituted];
        if self.supply.is_labelled() {
            columns.insert(0, Column::Label);
        }
        if matches!(&self.supply, Supply::Indexed { source, .. } if !source.portions().is_empty()) {
            columns.push(Column::Part);
        }
        Layout::new(rows, self.fields.rows().to_vec(), &columns)
    }

    /// The bytes a feed of this pipeline may use with batches of at most `rows` rows, one line per owner, with their
    /// "total".
    ///
    /// # Errors
    /// [`ErrorKind::Environment`] when that is more than there is.
    pub fn budget(&self, rows: u64) -> Result<BTreeMap<String, u64>, Refusal> {
        let slot = self.layout(rows).slot_bytes.next_multiple_of(PAGE as u64);
        self.fields
            .check_room(rows, self.slots() as u64)
            .map_err(|message| Refusal::new(ErrorKind::Config, message))?;
        let own = match &self.supply {
            Supply::Indexed { source, order } => vec![
                // Buffers that the reader keeps for its next reads.
                ("buffers", fuelrail_connectors::POOL_BYTES),
                // The source's manifest.
                ("index", source.memory() + order.memory()),
                // Decoded blocks that the reader keeps.
                ("blocks", source.reader_memory()),
            ],
            Supply::Stream { flows, .. } => vec![
                // Records received: those in use, and those to come.
                ("windows", flows.window_memory()),
                // What the broker's client holds beside them.
                ("consumer", flows.source().memory()),
            ],
        };
        let lines = [
            own,
            vec![
                // Finished batches and those under construction.
                ("ring", self.slots() as u64 * slot),
                // Encoded bytes: requested, read, or with a worker. One record may exceed it alone.
                ("read_ahead", self.config.read_ahead_bytes),
                // Decoded pixels: at worst every worker holds the largest sample that is allowed.
                ("scratch", self.threads as u64 * self.config.max_sample_bytes),
                // Program, stacks, allocator.
                ("base", 64 << 20),
            ],
        ]
        .concat();
        let total = lines.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let budget: BTreeMap<String, u64> = lines
            .iter()
            .map(|&(owner, bytes)| (owner.to_string(), bytes))
            .chain([("total".into(), total)])
            .collect();
        let available = crate::memory::available_memory();
        if total > available.bytes {
            let list: Vec<_> =
                lines.iter().map(|(owner, bytes)| format!("{owner} {} MiB", bytes >> 20)).collect();
            let list = list.join(", ");
            return Err(Refusal::new(
                ErrorKind::Environment,
                format!(
                    "this pipeline may use {} MiB ({list}), but {available}: lower batch_size or prefetch_factor (ring), \
                     num_workers or max_sample_bytes (scratch), window_bytes (windows), or read_ahead_bytes",
                    total >> 20
                ),
            ));
        }
        Ok(budget)
    }
}
