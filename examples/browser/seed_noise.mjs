/**
 * The noise that a seed stands for, as `export/seed_noise.py` has it, and the way between two seeds.
 *
 * Seed 7 here is seed 7 of `nvae-sample` and of the served signature `sample`: Philox4x32-10 (Salmon
 * et al., SC 2011) keyed and counted as TensorFlow's stateless random numbers are, then Box-Muller.
 * The constants and their meaning are those of the Python module.
 */

const ROUNDS = 10;
const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
const SCRAMBLING_KEY = [0x3ec8f720, 0x02461e29];
const SMALLEST = Math.fround(1e-7);
const TWO_PI = Math.fround(2 * Math.PI);
const PARALLEL = 1e-4; // sine of the angle below which two vectors count as parallel

/**
 * Returns what the signature `sample` draws for a seed.
 *
 * @param {bigint | number | string} seed An integer from 0 to 2^63 - 1; a number only if it is exact.
 * @param {number[][]} shapes For each latent group, its shape without the batch.
 * @returns {Float32Array[]} Standard-normal values, one array for each group.
 * @throws {RangeError} The seed is not allowed.
 */
export function noiseOfSeed(seed, shapes) {
  if (!isSeed(seed)) {
    throw new RangeError(`A seed is an integer from 0 to 2^63 - 1, and not ${seed}.`);
  }
  const number = BigInt(seed);
  const words = [Number(number & 0xffffffffn), Number(number >> 32n), 0, 0];
  return shapes.map((shape, group) =>
    normal(
      foldIn(words, group),
      shape.reduce((a, b) => a * b, 1),
    ),
  );
}

/** Says whether `noiseOfSeed` takes a value: whole, not negative, below 2^63, and exact. */
export function isSeed(value) {
  if (typeof value === "number") return Number.isSafeInteger(value) && value >= 0;
  return /^\d+$/.test(String(value)) && BigInt(value) < 1n << 63n;
}

/**
 * Returns noise on the great circle from start to end, group by group, as `nvae-latents` does it.
 *
 * @param {Float32Array[]} start The noise at weight 0.
 * @param {Float32Array[]} end The noise at weight 1, of the same sizes.
 * @param {number} weight From 0 to 1.
 */
export function greatCircle(start, end, weight) {
  return start.map((a, group) => {
    const b = end[group];
    const lengths = Math.sqrt(dot(a, a) * dot(b, b));
    const cosine = lengths > 0 ? dot(a, b) / lengths : 0;
    const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
    const sine = Math.sin(angle);
    const straight = sine < PARALLEL; // or opposite, where no great circle is the shortest
    const first = straight ? 1 - weight : Math.sin((1 - weight) * angle) / sine;
    const second = straight ? weight : Math.sin(weight * angle) / sine;
    return a.map((value, i) => first * value + second * b[i]);
  });
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** Does what `tf.random.experimental.stateless_fold_in` does; seeds are four words, low ones first. */
function foldIn(seed, number) {
  const { key, counter } = keyAndCounter(seed);
  const [low, high] = philox(counter, key);
  return [low, high, number, 0];
}

/** Does what `tf.random.stateless_normal` does on CPUs and GPUs. */
function normal(seed, size) {
  const { key, counter } = keyAndCounter(seed);
  const values = new Float32Array(4 * Math.ceil(size / 4));
  for (let at = 0; at < size; at += 4) {
    counter[0] = at / 4; // a group has less than 2^34 values
    const bits = philox(counter, key);
    for (const half of [0, 2]) {
      const [first, second] = [uniform(bits[half]), uniform(bits[half + 1])];
      const logarithm = Math.fround(Math.log(Math.max(first, SMALLEST)));
      const radius = Math.fround(Math.sqrt(-2 * logarithm));
      const angle = Math.fround(TWO_PI * second);
      values[at + half] = Math.fround(Math.sin(angle)) * radius;
      values[at + half + 1] = Math.fround(Math.cos(angle)) * radius;
    }
  }
  return values.subarray(0, size);
}

/** From 0 to 1: the mantissa of a float32. */
function uniform(bits) {
  return (bits & 0x7fffff) / 0x800000;
}

/** Does what TensorFlow does with a seed. */
function keyAndCounter(seed) {
  const mixed = philox(seed, SCRAMBLING_KEY);
  return { key: [mixed[0], mixed[1]], counter: [0, 0, mixed[2], mixed[3]] };
}

/** Philox4x32-10: four words from four words of a counter and two of a key. */
function philox(counter, key) {
  let [a, b, c, d] = counter;
  let [first, second] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const high = [highProduct(MULTIPLIERS[0], a), highProduct(MULTIPLIERS[1], c)];
    const low = [Math.imul(MULTIPLIERS[0], a), Math.imul(MULTIPLIERS[1], c)];
    [a, b, c, d] = [high[1] ^ b ^ first, low[1], high[0] ^ d ^ second, low[0]];
    [first, second] = [(first + WEYL[0]) | 0, (second + WEYL[1]) | 0];
  }
  return [a >>> 0, b >>> 0, c >>> 0, d >>> 0];
}

/** The upper 32 bits of a product of two 32-bit numbers, which no number of JavaScript can hold. */
function highProduct(a, b) {
  const [aHigh, aLow] = [a >>> 16, a & 0xffff];
  const [bHigh, bLow] = [b >>> 16, b & 0xffff];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const carried = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (carried >>> 16)) | 0;
}
