//! Views, masks and geometry against the same chains run alone, step by step, on the whole image.

use image::{ExtendedColorType, ImageFormat};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::Finish;
use crate::decode::jpeg::tests::{PLAIN, Style, encode};
use crate::erasings_left;
use crate::tests::{any_step, at, oriented, parse, png, run as run_chain, save, u8_chain};

pub(super) fn config(what: What, transforms: Value) -> PictureConfig {
    let output = OutputConfig { layout: Layout::Nhwc, ..OutputConfig::default() };
    PictureConfig { image: 0, what, transforms: parse(transforms).unwrap(), output }
}

/// A mask of the record's second image.
pub(super) fn mask(like: usize, dtype: Dtype) -> PictureConfig {
    let output = OutputConfig { dtype: Some(dtype), ..OutputConfig::default() };
    PictureConfig { image: 1, what: What::Mask { like }, transforms: Vec::new(), output }
}

fn geometry(of: usize) -> PictureConfig {
    PictureConfig {
        image: 0,
        what: What::Geometry { of },
        transforms: Vec::new(),
        output: OutputConfig::default(),
    }
}

pub(super) fn compiled(pictures: &[PictureConfig]) -> Pictures {
    compile_pictures(pictures, Limits::default(), &[]).unwrap()
}

fn rows_of(
    pictures: &Pictures,
    encoded: &[&[u8]],
    key: SampleKey,
    scratch: &mut Scratch,
) -> Result<Vec<Vec<u8>>, PictureFault> {
    let mut rows: Vec<Vec<u8>> = pictures.outputs().iter().map(|spec| vec![0xAA; spec.row_bytes()]).collect();
    let mut parts: Vec<&mut [u8]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
    pictures.apply(&encoded.iter().map(|one| Some(*one)).collect::<Vec<_>>(), key, scratch, &mut parts)?;
    Ok(rows)
}

pub(super) fn rows(
    pictures: &Pictures,
    encoded: &[&[u8]],
    key: SampleKey,
) -> Result<Vec<Vec<u8>>, PictureFault> {
    rows_of(pictures, encoded, key, &mut Scratch::default())
}

/// What a chain alone makes of the whole image, step by step, with the draws of a stream.
fn alone(transforms: &Value, encoded: &[u8], key: SampleKey, number: u32) -> Vec<u8> {
    let output = OutputConfig { layout: Layout::Nhwc, ..OutputConfig::default() };
    let limits = Limits::default();
    let program = compile_program(&parse(transforms.clone()).unwrap(), &output, limits, None).unwrap();
    alone_by(&program, encoded, key, number, Want::Colors)
}

fn alone_by(program: &Program, encoded: &[u8], key: SampleKey, number: u32, want: Want) -> Vec<u8> {
    let (limits, mut scratch) = (Limits::default(), Scratch::default());
    let opened = scratch.decoders.open(encoded, &limits, want).unwrap();
    let picture = Picture::encoded(opened, &mut scratch.buffers, limits);
    let mut row = vec![0x55; program.pass.spec.row_bytes()];
    program.run(picture, Stream { key, number }, true, &limits, &mut row).unwrap();
    row
}

fn floats(row: &[u8]) -> Vec<f32> {
    row.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

/// Chains of any steps whose output is of one size.
fn any_chain() -> impl Strategy<Value = Value> {
    (prop::collection::vec(any_step(), 0..5), 1u32..40).prop_map(|(mut steps, last)| {
        steps.push(json!({"type": "CenterCrop", "size": last}));
        Value::Array(steps)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn pictures_on_one_decode_are_what_each_is_alone_on_the_whole_image(
        w in 1usize..120, h in 1usize..120, chains in prop::collection::vec((any_chain(), 0u32..4), 1..4),
        position: u64, jpeg: bool, progressive: bool, orientation in 1u16..=8,
    ) {
        let encoded = if jpeg {
            oriented(encode(w, h, position, Style { progressive, ..PLAIN }), orientation)
        } else {
            png(w, h, position)
        };
        // No views means an image.
        let what = |views| if views == 0 { What::Image } else { What::Views(views) };
        let configs: Vec<_> = chains.iter().map(|(chain, views)| config(what(*views), chain.clone())).collect();
        let found = rows(&compiled(&configs), &[&encoded], at(position)).unwrap();
        let mut number = 0;
        for ((chain, views), found) in chains.iter().zip(found) {
            let expected: Vec<u8> = (0..(*views).max(1))
                .flat_map(|view| alone(chain, &encoded, at(position), number + view))
                .collect();
            number += (*views).max(1);
            prop_assert!(found == expected, "{chain} {views}");
        }
    }

    #[test]
    fn rows_do_not_depend_on_what_a_thread_did_before(
        turns in prop::collection::vec((0usize..3, 1usize..60, 1usize..60, any::<u64>()), 1..6),
    ) {
        let menu = menu();
        let mut scratch = Scratch::default();
        for (kind, w, h, position) in turns {
            let (image, mask) = (png(w, h, position), classes(w, h));
            let encoded: [&[u8]; 2] = [&image, &mask];
            let found = rows_of(&menu[kind], &encoded, at(position), &mut scratch);
            prop_assert!(found == rows(&menu[kind], &encoded, at(position)));
        }
    }
}

/// Pictures of every kind together.
fn menu() -> [Pictures; 3] {
    let chain = json!([
        {"type": "RandomResizedCrop", "size": 20}, {"type": "RandomHorizontalFlip"},
        {"type": "ColorJitter", "brightness": 0.4}, {"type": "GaussianBlur", "kernel_size": 3},
    ]);
    let padded =
        json!([{"type": "RandomCrop", "size": 30, "pad_if_needed": true}, {"type": "RandomVerticalFlip"}]);
    [
        compiled(&[config(What::Image, padded.clone()), mask(0, Dtype::U16), geometry(0)]),
        compiled(&[config(What::Views(3), chain.clone())]),
        compiled(&[
            mask(2, Dtype::U8),
            config(What::Views(2), chain.clone()),
            config(What::Image, chain),
            geometry(2),
            mask(5, Dtype::U16),
            config(What::Image, padded),
        ]),
    ]
}

/// A mask in 16 bits whose number says where a pixel lies: 256 + 250 y + x.
fn places(w: usize, h: usize) -> Vec<u8> {
    let numbers: Vec<u8> =
        (0..h).flat_map(|y| (0..w).flat_map(move |x| ((256 + 250 * y + x) as u16).to_ne_bytes())).collect();
    save(&numbers, w, h, ExtendedColorType::L16, ImageFormat::Png)
}

/// A mask in 8 bits, of seven classes.
fn classes(w: usize, h: usize) -> Vec<u8> {
    let numbers: Vec<u8> = (0..w * h).map(|at| ((at % w) / 5 + (at / w) / 4) as u8 % 7).collect();
    save(&numbers, w, h, ExtendedColorType::L8, ImageFormat::Png)
}

/// An image that says where a pixel lies, too: x in red, y in green, and in blue that it is none of a
/// border; blue has room above it, so that a filter's ringing beside a border shows.
fn ramp(w: usize, h: usize) -> Vec<u8> {
    let pixels: Vec<u8> = (0..w * h).flat_map(|at| [(at % w) as u8, (at / w) as u8, INSIDE]).collect();
    save(&pixels, w, h, ExtendedColorType::Rgb8, ImageFormat::Png)
}

const INSIDE: u8 = 200;

fn numbers(row: &[u8]) -> Vec<u16> {
    row.as_chunks::<2>().0.iter().map(|bytes| u16::from_ne_bytes(*bytes)).collect()
}

/// Steps that move pixels, for images of up to 250 pixels a side.
pub(super) fn geometric_step() -> impl Strategy<Value = Value> {
    let filter =
        prop_oneof![Just("nearest"), Just("bilinear"), Just("bicubic"), Just("lanczos"), Just("box")];
    let side = 8u32..250;
    let mode = prop_oneof![Just("constant"), Just("edge"), Just("reflect"), Just("symmetric")];
    prop_oneof![
        (side.clone(), side.clone(), filter.clone())
            .prop_map(|(h, w, f)| json!({"type": "Resize", "size": [h, w], "interpolation": f})),
        (side.clone(), filter.clone()).prop_map(|(s, f)| json!(
            {"type": "Resize", "size": s, "interpolation": f, "max_size": s + 60})),
        (side.clone(), side.clone()).prop_map(|(h, w)| json!({"type": "CenterCrop", "size": [h, w]})),
        (side.clone(), side.clone(), mode.clone()).prop_map(|(h, w, m)| json!(
            {"type": "RandomCrop", "size": [h, w], "pad_if_needed": true, "padding_mode": m})),
        (side.clone(), side, filter).prop_map(|(h, w, f)| json!(
            {"type": "RandomResizedCrop", "size": [h, w], "interpolation": f})),
        Just(json!({"type": "RandomHorizontalFlip"})),
        Just(json!({"type": "RandomVerticalFlip"})),
        Just(json!({"type": "RandomRotation", "degrees": 30, "interpolation": "bilinear"})),
        Just(json!({"type": "RandomRotation", "degrees": [90, 90], "expand": true})),
        ([0u32..9, 0..9, 0..9, 0..9], mode).prop_map(|(p, m)| json!(
            {"type": "Pad", "padding": p, "padding_mode": m, "fill": 0})),
    ]
}

/// How far, in pixels of the original, a nearest neighbour may lie from what the image shows: of every resize and
/// rotation the reach of its filter, before or after it, whichever are the larger pixels.
pub(super) fn reach(program: &Program, (w, h): (usize, usize), stream: Stream) -> f64 {
    let (limits, mut scratch) = (Limits::default(), Scratch::default());
    let header = Header { stored: (w, h), symmetry: crate::geometry::Symmetry::IDENTITY };
    let (mut reach, mut pitch) = (1.0, 1.0f64);
    let picture = Picture::sketch(header, &mut scratch.buffers, limits);
    program
        .trace(picture, stream, &limits, |picture| {
            let now = picture.pitch();
            if now != pitch {
                reach += 2.0 * now.max(pitch) + 1.0;
            }
            // Of a rotation, which is not seen in the pitch, and the rounding of levels.
            reach += now + 0.5;
            pitch = now;
        })
        .unwrap();
    reach
}

/// The share of pixels that could be compared, of all.
fn no_drift(w: usize, h: usize, steps: &[Value], last: u32, position: u64) -> (usize, usize) {
    let mut steps = steps.to_vec();
    steps.push(json!({"type": "CenterCrop", "size": last}));
    let chain = Value::Array(steps);
    let configs = [config(What::Image, chain.clone()), mask(0, Dtype::U16)];
    let (image, places) = (ramp(w, h), places(w, h));
    let found = rows(&compiled(&configs), &[&image, &places], at(position)).unwrap();
    let program =
        compile_program(&configs[0].transforms, &configs[0].output, Limits::default(), None).unwrap();
    let reach = reach(&program, (w, h), Stream::first(at(position)));
    let masked = program.like_mask(Dtype::U16);
    assert!(
        found[1] == alone_by(&masked, &places, at(position), 0, Want::Values { wide: true }),
        "the mask's plan gives what its steps give one by one: {chain}"
    );
    let mut compared = 0;
    for (at, (pixel, number)) in found[0].as_chunks::<3>().0.iter().zip(numbers(&found[1])).enumerate() {
        // A pixel with some border in it says nothing.
        if number == 255 || pixel[2] != INSIDE {
            continue;
        }
        compared += 1;
        let place = usize::from(number - 256);
        for (shown, held) in [(pixel[0], place % 250), (pixel[1], place / 250)] {
            assert!(
                (f64::from(shown) - held as f64).abs() <= reach,
                "pixel {at}: the image shows {shown}, the mask holds {held}, which is farther than {reach}: {chain} on \
                 {w} x {h} at {position}"
            );
        }
    }
    (compared, found[1].len() / 2)
}

fn many() -> ProptestConfig {
    ProptestConfig::with_cases(if std::env::var_os("FUELRAIL_GATE").is_some() { 20_000 } else { 1500 })
}

proptest! {
    #![proptest_config(many())]
    #[test]
    fn a_mask_lies_on_its_image_through_any_chain(
        w in 8usize..250, h in 8usize..250, steps in prop::collection::vec(geometric_step(), 0..4), last in 8u32..60,
        position: u64,
    ) {
        no_drift(w, h, &steps, last, position);
    }
}

#[test]
fn an_image_in_a_list_is_what_its_chain_makes_and_the_next_one_draws_otherwise() {
    let chain = json!([{"type": "RandomResizedCrop", "size": 16}, {"type": "RandomHorizontalFlip"}]);
    let image = encode(60, 50, 4, PLAIN);
    let expected = run_chain(&u8_chain(chain.clone()), &image, at(5), false).unwrap();
    let one = rows(&compiled(&[config(What::Image, chain.clone())]), &[&image], at(5)).unwrap();
    assert!(one.len() == 1 && one[0] == expected);
    let two = compiled(&[config(What::Image, chain.clone()), config(What::Image, chain)]);
    let two = rows(&two, &[&image], at(5)).unwrap();
    assert!(two[0] == expected && two[1] != expected);
}

#[test]
fn what_changes_colours_only_does_not_change_a_mask() {
    let chain = |colours: &[Value]| {
        let mut chain =
            vec![json!({"type": "RandomResizedCrop", "size": 20}), json!({"type": "RandomHorizontalFlip"})];
        chain.extend_from_slice(colours);
        chain.push(json!({"type": "RandomRotation", "degrees": 20}));
        chain
    };
    let colours = [
        json!({"type": "ColorJitter", "brightness": 0.4, "hue": 0.1}),
        json!({"type": "RandomGrayscale", "p": 1}),
        json!({"type": "GaussianBlur", "kernel_size": 5}),
        json!({"type": "GaussianNoise"}),
        json!({"type": "RandomErasing", "p": 1}),
    ];
    // At the same places, since draws depend on them.
    let nothing = vec![json!({"type": "ColorJitter"}); colours.len()];
    let [after, normal] =
        [json!({"type": "RandomErasing", "p": 1}), json!({"type": "Normalize", "mean": [0.5], "std": [0.5]})];
    let encoded: [&[u8]; 2] = [&png(50, 40, 1), &classes(50, 40)];
    let masked = |mut chain: Vec<Value>, tail: &[Value]| {
        chain.extend_from_slice(tail);
        rows(&compiled(&[config(What::Image, Value::Array(chain)), mask(0, Dtype::U8)]), &encoded, at(2))
            .unwrap()
            .remove(1)
    };
    let plain = masked(chain(&nothing), &[]);
    assert_eq!(masked(chain(&colours), &[normal, after]), plain);
    assert!(
        plain.iter().all(|class| *class < 7 || *class == 255) && plain.contains(&255),
        "255 in the corners"
    );
}

#[test]
fn a_mask_takes_part_in_every_geometry_and_choice_of_its_image() {
    // An image whose levels are its mask's numbers, drawn with nearest neighbours, is its mask.
    let numbers: Vec<u8> = (0..60 * 50).map(|at| (at % 251) as u8).collect();
    let colours: Vec<u8> = numbers.iter().flat_map(|number| [*number; 3]).collect();
    let encoded: [&[u8]; 2] = [
        &save(&colours, 60, 50, ExtendedColorType::Rgb8, ImageFormat::Png),
        &save(&numbers, 60, 50, ExtendedColorType::L8, ImageFormat::Png),
    ];
    let affine = json!(
        {"type": "RandomAffine", "degrees": 30, "translate": [0.2, 0.2], "scale": [0.7, 1.4], "fill": 255});
    let turn = json!({"type": "RandomRotation", "degrees": 90, "fill": 255});
    let pad = json!({"type": "Pad", "padding": 5, "fill": 255});
    let flip = json!({"type": "RandomHorizontalFlip"});
    for step in [
        affine.clone(),
        json!({"type": "RandomPerspective", "interpolation": "nearest", "fill": 255}),
        json!({"type": "ElasticTransform", "sigma": 2, "interpolation": "nearest", "fill": 255}),
        json!({"type": "RandomApply", "transforms": [affine, flip]}),
        json!({"type": "RandomChoice", "transforms": [turn, pad, {"type": "ColorJitter"}, affine], "p": [1, 2, 1, 1]}),
        json!({"type": "RandomOrder", "transforms": [
            turn, {"type": "RandomChannelPermutation"}, {"type": "RandomApply", "transforms": [affine]}, pad, flip]}),
    ] {
        let chain = json!([step, {"type": "CenterCrop", "size": [48, 56]}]);
        let pictures = compiled(&[config(What::Image, chain), mask(0, Dtype::U8)]);
        let mut seen = std::collections::HashSet::new();
        for position in 0..24 {
            let rows = rows(&pictures, &encoded, at(position)).unwrap();
            let image: Vec<u8> = rows[0].iter().step_by(3).copied().collect();
            assert_eq!(image, rows[1], "{step} at {position}");
            seen.insert(image);
        }
        assert!(seen.len() > 1, "{step}");
    }
}

#[test]
fn a_mask_takes_part_in_the_operations_of_a_policy_that_move_pixels() {
    let numbers: Vec<u8> = (0..60 * 50).map(|at| (at % 251) as u8).collect();
    let colours: Vec<u8> = numbers.iter().flat_map(|number| [*number; 3]).collect();
    let encoded: [&[u8]; 2] = [
        &save(&colours, 60, 50, ExtendedColorType::Rgb8, ImageFormat::Png),
        &save(&numbers, 60, 50, ExtendedColorType::L8, ImageFormat::Png),
    ];
    for step in [
        json!({"type": "RandAugment", "num_ops": 1, "magnitude": 20, "fill": 255}),
        json!({"type": "TrivialAugmentWide", "fill": 255}),
    ] {
        let chain = json!([step, {"type": "CenterCrop", "size": [50, 60]}]);
        let pictures = compiled(&[config(What::Image, chain), mask(0, Dtype::U8)]);
        let (mut moved, mut coloured) = (0, 0);
        for position in 0..60 {
            let rows = rows(&pictures, &encoded, at(position)).unwrap();
            let image: Vec<u8> = rows[0].iter().step_by(3).copied().collect();
            // One operation moves the pixels of both, or changes the levels of one.
            assert!(image == rows[1] || rows[1] == numbers, "{step} at {position}");
            moved += u32::from(rows[1] != numbers);
            coloured += u32::from(image != rows[1]);
        }
        assert!(moved > 10 && coloured > 10, "{step}: {moved} moved, {coloured} coloured");
    }
}

#[test]
fn borders_of_a_mask_are_255_where_the_image_has_a_colour_and_repeat_it_where_the_image_is_repeated() {
    let padded = |mode: &str, last: u32| {
        let chain = json!([
            {"type": "Pad", "padding": [2, 1, 1, 0], "fill": [1, 2, 3], "padding_mode": mode},
            {"type": "CenterCrop", "size": [3, last]}
        ]);
        let encoded: [&[u8]; 2] =
            [&png(3, 2, 0), &save(&[1, 2, 3, 4, 5, 6], 3, 2, ExtendedColorType::L8, ImageFormat::Png)];
        rows(&compiled(&[config(What::Image, chain), mask(0, Dtype::U8)]), &encoded, at(0)).unwrap().remove(1)
    };
    let void = 255;
    assert_eq!(
        padded("constant", 6),
        [void, void, void, void, void, void, void, void, 1, 2, 3, void, void, void, 4, 5, 6, void]
    );
    assert_eq!(padded("edge", 6), [1, 1, 1, 2, 3, 3, 1, 1, 1, 2, 3, 3, 4, 4, 4, 5, 6, 6]);
    assert_eq!(padded("reflect", 6), [6, 5, 4, 5, 6, 5, 3, 2, 1, 2, 3, 2, 6, 5, 4, 5, 6, 5]);
    assert_eq!(padded("symmetric", 6), [2, 1, 1, 2, 3, 3, 2, 1, 1, 2, 3, 3, 5, 4, 4, 5, 6, 6]);
    assert_eq!(padded("constant", 8)[8..16], [void, void, void, 1, 2, 3, void, void]);
}

#[test]
fn a_mask_is_turned_upright_by_its_own_orientation_and_must_then_have_its_images_size() {
    let chain = json!([{"type": "CenterCrop", "size": [30, 20]}]);
    let pictures = compiled(&[config(What::Image, chain), mask(0, Dtype::U8)]);
    let gray = Style { sampling: turbojpeg_sys::TJSAMP_TJSAMP_GRAY, ..PLAIN };
    let (image, lying) = (png(20, 30, 0), oriented(encode(30, 20, 1, gray), 6));
    assert!(rows(&pictures, &[&image, &lying], at(0)).is_ok());
    let fault = rows(&pictures, &[&image, &classes(30, 20)], at(0)).unwrap_err();
    let text = fault.to_string();
    assert!(fault.picture == 1 && text.contains("30 x 20") && text.contains("20 x 30"), "{text}");
    let fault = rows(&pictures, &[b"no image", &lying], at(0)).unwrap_err();
    assert_eq!(fault.picture, 0);
    let fault = rows(&pictures, &[&image, b"no mask"], at(0)).unwrap_err();
    assert_eq!(fault.picture, 1);
}

#[test]
fn a_fault_names_the_picture_it_is_of() {
    let whole = json!([{"type": "CenterCrop", "size": 4}]);
    let large = json!([{"type": "RandomCrop", "size": 64}]);
    let pictures = compiled(&[config(What::Image, whole), config(What::Views(2), large)]);
    let fault = rows(&pictures, &[&png(20, 10, 0)], at(0)).unwrap_err();
    assert!(fault.picture == 1 && fault.to_string().contains("20 x 10"), "{fault}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_rectangle_of_a_geometry_cut_from_the_whole_image_gives_its_row(
        w in 2usize..120, h in 2usize..120, position: u64, jpeg: bool, orientation in 1u16..=8, first: bool,
    ) {
        let encoded =
            if jpeg { oriented(encode(w, h, position, PLAIN), orientation) } else { png(w, h, position) };
        let (mut chain, flips) = (
            vec![
                json!({"type": "RandomResizedCrop", "size": [24, 18]}),
                json!({"type": "GaussianBlur", "kernel_size": 1}),
            ],
            [json!({"type": "RandomHorizontalFlip"}), json!({"type": "RandomVerticalFlip"})],
        );
        let at_place = if first { 0 } else { chain.len() };
        chain.splice(at_place..at_place, flips);
        let chain = Value::Array(chain);
        let found = rows(&compiled(&[config(What::Image, chain), geometry(0)]), &[&encoded], at(position)).unwrap();
        let numbers = floats(&found[1]);
        let (up_w, up_h) = if jpeg && orientation > 4 { (h, w) } else { (w, h) };
        prop_assert_eq!(&numbers[6..], &[up_h as f32, up_w as f32]);
        let [top, left, height, width] = [0, 1, 2, 3].map(|i| numbers[i] as usize);
        let whole = alone(&json!([{"type": "CenterCrop", "size": [up_h, up_w]}]), &encoded, at(0), 0);
        let cut: Vec<u8> = (top..top + height)
            .flat_map(|y| whole[(y * up_w + left) * 3..][..width * 3].to_vec())
            .collect();
        let cut = save(&cut, width, height, ExtendedColorType::Rgb8, ImageFormat::Png);
        let flip = |name: &str, at: usize| json!({"type": name, "p": numbers[at]});
        let mut again = vec![json!({"type": "Resize", "size": [24, 18]})];
        let flips = [flip("RandomHorizontalFlip", 4), flip("RandomVerticalFlip", 5)];
        let at_place = if first { 0 } else { 1 };
        again.splice(at_place..at_place, flips);
        prop_assert!(alone(&Value::Array(again), &cut, at(0), 0) == found[0]);
    }
}

#[test]
fn a_geometry_is_in_pixels_of_the_original_with_fractions_behind_a_resize_and_negative_beyond_its_edge() {
    let of = |chain: Value, (w, h): (usize, usize)| {
        let found =
            rows(&compiled(&[config(What::Image, chain), geometry(0)]), &[&png(w, h, 0)], at(0)).unwrap();
        floats(&found[1])
    };
    let resized = json!([{"type": "Resize", "size": [40, 60]}, {"type": "CenterCrop", "size": [20, 21]}]);
    // 60 of 90 pixels: each is 1.5 of the original, and the crop begins at the 20th (19.5 goes to the even neighbour).
    assert_eq!(of(resized, (90, 80)), [20.0, 30.0, 40.0, 31.5, 0.0, 0.0, 80.0, 90.0]);
    let padded = json!([
        {"type": "RandomHorizontalFlip", "p": 1}, {"type": "Pad", "padding": [1, 2, 3, 4]},
        {"type": "CenterCrop", "size": [16, 14]}
    ]);
    // Left of a mirrored image is right of the original.
    assert_eq!(of(padded, (10, 10)), [-2.0, -3.0, 16.0, 14.0, 1.0, 0.0, 10.0, 10.0]);
    let small = json!([{"type": "CenterCrop", "size": 20}]);
    assert_eq!(of(small, (10, 9)), [-5.0, -5.0, 20.0, 20.0, 0.0, 0.0, 9.0, 10.0]);
    let still = json!([{"type": "RandomRotation", "degrees": 0}, {"type": "CenterCrop", "size": [9, 10]}]);
    assert_eq!(of(still, (10, 9)), [0.0, 0.0, 9.0, 10.0, 0.0, 0.0, 9.0, 10.0]);
}

#[test]
fn the_rows_of_pictures_are_announced() {
    let chain = json!([{"type": "RandomResizedCrop", "size": [8, 6]}]);
    let mut pictures =
        [config(What::Image, chain.clone()), config(What::Views(3), chain), mask(0, Dtype::U16), geometry(0)];
    pictures[0].output.layout = Layout::Nchw;
    let found = compiled(&pictures);
    let spec = |dtype, shape: &[usize], strides: &[usize]| RowSpec {
        dtype,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
        finishing: None,
    };
    assert_eq!(
        found.outputs(),
        [
            spec(Dtype::U8, &[3, 8, 6], &[48, 6, 1]),
            spec(Dtype::U8, &[3, 3, 8, 6], &[144, 1, 18, 3]),
            spec(Dtype::U16, &[8, 6], &[6, 1]),
            spec(Dtype::F32, &[8], &[1]),
        ]
    );
    assert_eq!(found.outputs().iter().map(RowSpec::row_bytes).collect::<Vec<_>>(), [144, 432, 96, 32]);
}

#[test]
fn a_picture_that_cannot_be_is_refused_with_its_place_and_the_reason() {
    let crop = || config(What::Image, json!([{"type": "RandomResizedCrop", "size": 8}]));
    let views = |n| config(What::Views(n), json!([{"type": "RandomResizedCrop", "size": 8}]));
    let turned = config(
        What::Image,
        json!([{"type": "CenterCrop", "size": 8}, {"type": "RandomRotation", "degrees": 5}]),
    );
    let mixed = config(What::Image, json!([{"type": "AugMix"}, {"type": "CenterCrop", "size": 8}]));
    let inside = config(
        What::Image,
        json!([{"type": "CenterCrop", "size": 8}, {"type": "RandomApply", "transforms": [
            {"type": "RandomInvert"}, {"type": "RandomPerspective"}]}]),
    );
    let with = |config: PictureConfig, dtype| PictureConfig {
        output: OutputConfig { dtype: Some(dtype), ..OutputConfig::default() },
        ..config
    };
    let own = PictureConfig { transforms: crop().transforms, ..mask(0, Dtype::U8) };
    for (pictures, place, words) in [
        (vec![crop(), views(0)], 1, &["views", "between 1 and"][..]),
        (vec![crop(), views(1_000_000)], 1, &["views", "1000000"]),
        (vec![views(2), mask(0, Dtype::U8)], 1, &["mask", "views", "add an Image"]),
        (vec![crop(), mask(1, Dtype::U8)], 1, &["mask follows an image"]),
        (vec![crop(), geometry(7)], 1, &["geometry follows an image"]),
        (vec![crop(), mask(0, Dtype::F32)], 1, &["u8 or u16", "f32"]),
        (vec![crop(), own], 1, &["no transforms of its own"]),
        (vec![crop(), with(geometry(0), Dtype::U8)], 1, &["eight f32", "u8"]),
        (vec![turned, geometry(0)], 1, &["transforms[1] RandomRotation", "no longer an upright rectangle"]),
        (vec![mixed.clone(), mask(0, Dtype::U8)], 1, &["transforms[0] AugMix", "no mask can lie"]),
        (vec![mixed, geometry(0)], 1, &["transforms[0] AugMix", "no longer an upright rectangle"]),
        (vec![inside, geometry(0)], 1, &["transforms[1] RandomApply", "no longer an upright rectangle"]),
        (vec![crop(), with(crop(), Dtype::U16)], 1, &["u16 is for masks"]),
        (
            vec![config(What::Image, json!([{"type": "CenterCrop", "size": 0}]))],
            0,
            &["transforms[0] CenterCrop"],
        ),
    ] {
        let error = compile_pictures(&pictures, Limits::default(), &[]).unwrap_err();
        assert_eq!(error.picture, place, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{error} does not say {word}");
        }
    }
    // With a size that is known, a chain need not fix it.
    let open = [config(What::Image, json!([]))];
    assert!(compile_pictures(&open, Limits::default(), &[None]).is_err());
    let known = compile_pictures(&open, Limits::default(), &[Some((5, 4))]).unwrap();
    assert_eq!(known.outputs()[0].shape, [3, 4, 5]);
}

/// A row of u8 finished as [`Finishing`] says, for the reader of the text above all.
fn finished(row: &[u8], erased: &[f32], spec: &RowSpec) -> Vec<f32> {
    let left = spec.finishing.as_ref().unwrap();
    let [c, h, w] = spec.shape[spec.shape.len() - 3..] else { panic!("an image") };
    let strides = &spec.strides[spec.strides.len() - 3..];
    let mut out: Vec<f32> = vec![0.0; c * h * w];
    for (channel, y, x) in (0..c).flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| (c, y, x)))) {
        let at = channel * strides[0] + y * strides[1] + x * strides[2];
        out[at] = f32::from(row[at]) * left.scale[channel] + left.bias[channel];
        for (rect, value) in erased.as_chunks::<4>().0.iter().zip(&left.erasings) {
            let [top, left, height, width] = rect.map(|number| number as usize);
            if (top..top + height).contains(&y) && (left..left + width).contains(&x) {
                out[at] = value[channel];
            }
        }
    }
    out
}

#[test]
fn bytes_and_what_is_left_to_do_are_the_floats_that_were_asked_for() {
    let erase = json!({"type": "RandomErasing", "p": 0.7, "value": [0.5, -1.0, 2.0]});
    let chains = [
        json!([{"type": "RandomResizedCrop", "size": [9, 12]}, {"type": "Normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}, erase, erase]),
        json!([{"type": "RandomCrop", "size": 8}, {"type": "Normalize", "mean": [0.5], "std": [0.5]}]),
        json!([{"type": "RandomCrop", "size": 8}, {"type": "Grayscale"}, {"type": "Normalize", "mean": [0.5], "std": [0.2]},
            {"type": "RandomErasing", "p": 1.0}]),
        json!([{"type": "RandomCrop", "size": 12}, {"type": "Normalize", "mean": [0.5], "std": [0.2]},
            {"type": "TimmRandomErasing", "probability": 0.8, "min_count": 1, "max_count": 3}, erase]),
    ];
    for (number, chain) in chains.into_iter().enumerate() {
        for what in [What::Image, What::Views(3)] {
            let here = config(what, chain.clone());
            let mut later = here.clone();
            later.output.finish = Finish::Later;
            let erased =
                PictureConfig { what: What::Erased { of: 0 }, transforms: Vec::new(), ..later.clone() };
            let (here, later) = (compiled(&[here]), compiled(&[later, erased]));
            let spec = &later.outputs()[0];
            assert_eq!((spec.dtype, spec.finishing.as_ref().unwrap().dtype), (Dtype::U8, Dtype::F32));
            for position in 0..20 {
                let encoded = png(20, 17, position);
                let whole = rows(&here, &[&encoded], at(position)).unwrap();
                let parts = rows(&later, &[&encoded], at(position)).unwrap();
                let image = spec.shape.iter().rev().take(3).product::<usize>();
                let views = parts[0].len() / image;
                let rects = floats(&parts[1]);
                let made: Vec<f32> = parts[0]
                    .chunks(image)
                    .enumerate()
                    .flat_map(|(view, row)| {
                        let each = rects.len() / views;
                        finished(row, &rects[view * each..][..each], spec)
                    })
                    .collect();
                assert_eq!(floats(&whole[0]), made, "chain {number}, {what:?}, position {position}");
            }
        }
    }
}

#[test]
fn erasing_with_random_values_is_not_left_to_others() {
    let chain = json!([{"type": "RandomCrop", "size": 8}, {"type": "Normalize", "mean": [0.5], "std": [0.5]},
        {"type": "RandomErasing", "value": "random"}]);
    let mut picture = config(What::Image, chain);
    picture.output.finish = Finish::Later;
    assert_eq!(erasings_left(&picture.transforms, &picture.output), Ok(0));
    let spec = compiled(&[picture]).outputs()[0].clone();
    assert_eq!((spec.dtype, spec.finishing), (Dtype::F32, None));
}
