// Steps that users of kafkajs take, one after the other: node main.js HOST:PORT. Prints a line per step.
'use strict'

const assert = require('node:assert/strict')
const { randomBytes } = require('node:crypto')
const { Kafka, CompressionTypes, CompressionCodecs, logLevel, ConfigResourceTypes } = require('kafkajs')
const SnappyCodec = require('kafkajs-snappy')
const lz4 = require('lz4-napi')
const zstd = require('@bokuweb/zstd-wasm')

const broker = process.argv[2]
const run = randomBytes(6).toString('hex')
const groups = (process.env.CLIENT_GROUPS || '').includes('classic')
const kafka = new Kafka({ clientId: 'millrace-test', brokers: [broker], logLevel: logLevel.NOTHING, retry: { retries: 8 } })
const admin = kafka.admin()
let failed = 0

CompressionCodecs[CompressionTypes.Snappy] = SnappyCodec
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async encoder => lz4.compressFrame(encoder.buffer),
  decompress: async buffer => lz4.decompressFrame(buffer),
})
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async encoder => Buffer.from(zstd.compress(encoder.buffer, 3)),
  decompress: async buffer => Buffer.from(zstd.decompress(buffer)),
})

async function step(name, body) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('not done after 90 s')), 90000)
  })
  try {
    await Promise.race([body(), late])
    console.log(`passed kafkajs-${name}`)
  } catch (error) {
    failed++
    console.log(`FAILED kafkajs-${name}\n    ${String(error.stack || error).slice(0, 800).replaceAll('\n', '\n    ')}`)
  } finally {
    clearTimeout(timer)
  }
}

async function newTopic(name, numPartitions = 1, configEntries = []) {
  const topic = `kafkajs-${run}-${name}`
  assert.ok(await admin.createTopics({ topics: [{ topic, numPartitions, replicationFactor: 1, configEntries }] }))
  return topic
}

async function produce(topic, messages, { compression = CompressionTypes.None, acks = -1, ...options } = {}) {
  const producer = kafka.producer(options)
  await producer.connect()
  try {
    return await producer.send({ topic, messages, compression, acks })
  } finally {
    await producer.disconnect()
  }
}

/** Reads `count` messages in a group of its own, from offsets that `seek` chooses by partition, or from the start. */
async function read(topic, count, { groupId = `kafkajs-${run}-${randomBytes(4).toString('hex')}`, seek = {}, commit = false } = {}) {
  const consumer = kafka.consumer({ groupId, maxWaitTimeInMs: 200, retry: { retries: 8 } })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  const messages = []
  try {
    await new Promise((resolve, reject) => {
      consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
      const eachMessage = async ({ partition, message }) => {
        if (messages.length === count) return
        messages.push({ ...message, partition })
        if (commit) await consumer.commitOffsets([{ topic, partition, offset: String(Number(message.offset) + 1) }])
        if (messages.length === count) resolve()
      }
      consumer.run({ autoCommit: false, eachMessage }).catch(reject)
      for (const [partition, offset] of Object.entries(seek)) consumer.seek({ topic, partition: Number(partition), offset })
    })
  } finally {
    await consumer.disconnect()
  }
  return messages
}

const values = (count, size) =>
  Array.from({ length: count }, (_, i) => ({ key: `k${i}`, value: `${i}-${'x'.repeat(size)}`, partition: 0 }))

async function endOffset(topic) {
  const [{ low, high }] = await admin.fetchTopicOffsets(topic)
  return [low, high]
}

function codec(name, compression) {
  return step(`codec-${name}`, async () => {
    const topic = await newTopic(`codec-${name}`)
    const sent = values(1000, 200)
    await produce(topic, sent, { compression })
    assert.deepEqual(await endOffset(topic), ['0', '1000'])
    if (!groups) return
    const back = await read(topic, sent.length)
    assert.deepEqual(back.map(m => [m.offset, String(m.key), String(m.value)]), sent.map((m, i) => [String(i), m.key, m.value]))
  })
}

async function keysAndHeaders() {
  const topic = await newTopic('headers')
  await produce(topic, [
    { key: 'key', value: 'value', headers: { a: '1', b: Buffer.from([0, 255]), c: ['2', '3'] }, partition: 0 },
    { value: 'no key', partition: 0 },
    { key: 'no value', value: null, partition: 0 },
  ])
  assert.deepEqual(await endOffset(topic), ['0', '3'])
  if (!groups) return
  const [first, second, third] = await read(topic, 3)
  assert.deepEqual([String(first.headers.a), [...first.headers.b], first.headers.c.map(String)], ['1', [0, 255], ['2', '3']])
  assert.deepEqual([second.key, String(second.value), String(third.key), third.value], [null, 'no key', 'no value', null])
}

async function byOffsetAndTimestamp() {
  const topic = await newTopic('seek')
  const base = Date.now() - 100000
  const answers = await produce(topic, values(20, 1).map((m, i) => ({ ...m, timestamp: String(base + i * 1000) })))
  assert.equal(answers[0].baseOffset, '0')
  const [found] = await admin.fetchTopicOffsetsByTimestamp(topic, base + 4001)
  assert.equal(found.offset, '5')
  if (!groups) return
  const back = await read(topic, 3, { seek: { 0: found.offset } })
  assert.deepEqual(back.map(m => m.offset), ['5', '6', '7'])
  assert.equal(back[0].timestamp, String(base + 5000))
}

async function idempotent() {
  const topic = await newTopic('idempotent')
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  for (let i = 0; i < 20; i++) await producer.send({ topic, messages: values(50, 10) })
  await producer.disconnect()
  assert.deepEqual(await endOffset(topic), ['0', '1000'])
}

async function acks() {
  const topic = await newTopic('acks')
  for (const level of [1, -1]) await produce(topic, values(10, 10), { acks: level })
  assert.deepEqual(await endOffset(topic), ['0', '20'])
}

async function administration() {
  const topic = await newTopic('admin', 3, [{ name: 'retention.ms', value: '7200000' }])
  assert.equal(await admin.createTopics({ topics: [{ topic, numPartitions: 3 }] }), false, 'created twice')
  await admin.createPartitions({ topicPartitions: [{ topic, count: 5 }] })
  const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
  assert.equal(topics[0].partitions.length, 5)
  const resource = { type: ConfigResourceTypes.TOPIC, name: topic }
  const configs = async () => {
    const { resources } = await admin.describeConfigs({ resources: [resource] })
    return Object.fromEntries(resources[0].configEntries.map(entry => [entry.configName, entry.configValue]))
  }
  assert.equal((await configs())['retention.ms'], '7200000')
  await admin.alterConfigs({ resources: [{ ...resource, configEntries: [{ name: 'max.message.bytes', value: '300000' }] }] })
  assert.equal((await configs())['max.message.bytes'], '300000')
  assert.ok((await admin.describeCluster()).brokers.length > 0)
  await admin.deleteTopics({ topics: [topic] })
  for (let i = 0; (await admin.listTopics()).includes(topic); i++) {
    assert.ok(i < 300, 'a deleted topic is still there')
    await new Promise(resolve => setTimeout(resolve, 100))
  }
}

async function deleteRecords() {
  const topic = await newTopic('delete-records')
  await produce(topic, values(100, 10))
  assert.deepEqual(await endOffset(topic), ['0', '100']) // also what lets kafkajs know the topic's leaders
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '40' }] })
  assert.deepEqual(await endOffset(topic), ['40', '100'])
}

async function tooLargeIsRefused() {
  const topic = await newTopic('large', 1, [{ name: 'max.message.bytes', value: '10000' }])
  const message = { value: 'x'.repeat(50000), partition: 0 }
  await assert.rejects(produce(topic, [message], { retry: { retries: 0 } }), error => /larger|large/i.test(String(error)))
}

async function group() {
  const topic = await newTopic('group', 4)
  const sent = Array.from({ length: 200 }, (_, i) => ({ value: String(i), partition: i % 4 }))
  await produce(topic, sent)
  const groupId = `kafkajs-${run}`
  const seen = []
  for (const count of [120, 80]) seen.push(...(await read(topic, count, { groupId, commit: true })))
  assert.deepEqual(seen.map(m => Number(m.value)).sort((a, b) => a - b), sent.map((_, i) => i))
}

async function transactional(name) {
  const producer = kafka.producer({ transactionalId: `kafkajs-${run}-${name}`, idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  return producer
}

const numbers = (from, to) =>
  Array.from({ length: to - from }, (_, i) => ({ value: String(from + i), partition: 0 }))

async function transactions() {
  const topic = await newTopic('transactions')
  const producer = await transactional('plain')
  for (const [from, to, isCommitted] of [[0, 50, true], [50, 100, false], [100, 150, true]]) {
    const transaction = await producer.transaction()
    await transaction.send({ topic, messages: numbers(from, to) })
    await (isCommitted ? transaction.commit() : transaction.abort())
  }
  await producer.disconnect()
  assert.deepEqual(await endOffset(topic), ['0', '153'])
  if (!groups) return
  const back = await read(topic, 100)
  assert.deepEqual(back.map(m => Number(m.value)), [...numbers(0, 50), ...numbers(100, 150)].map(m => Number(m.value)))
}

/** Every input once, though every third transaction is aborted. */
async function transactionsGroup() {
  const [input, output] = [await newTopic('transactions-in'), await newTopic('transactions-out')]
  await produce(input, numbers(0, 60))
  const groupId = `kafkajs-${run}-transactions`
  const producer = await transactional('group')
  let rounds = 0
  for (let taken = 0; taken < 60; ) {
    const messages = await read(input, Math.min(20, 60 - taken), { groupId })
    const transaction = await producer.transaction()
    await transaction.send({ topic: output, messages: messages.map(m => ({ value: m.value, partition: 0 })) })
    const offset = String(Number(messages.at(-1).offset) + 1)
    await transaction.sendOffsets({ consumerGroupId: groupId, topics: [{ topic: input, partitions: [{ partition: 0, offset }] }] })
    if (rounds++ % 3 === 2) {
      await transaction.abort()
    } else {
      await transaction.commit()
      taken += messages.length
    }
  }
  await producer.disconnect()
  const back = await read(output, 60)
  assert.deepEqual(back.map(m => Number(m.value)), numbers(0, 60).map(m => Number(m.value)))
}

async function main() {
  await zstd.init()
  await admin.connect()
  await step('admin', administration)
  await codec('none', CompressionTypes.None)
  await codec('gzip', CompressionTypes.GZIP)
  await codec('snappy', CompressionTypes.Snappy)
  await codec('lz4', CompressionTypes.LZ4)
  await codec('zstd', CompressionTypes.ZSTD)
  await step('keys-and-headers', keysAndHeaders)
  await step('by-offset-and-timestamp', byOffsetAndTimestamp)
  await step('idempotent', idempotent)
  await step('acks', acks)
  await step('delete-records', deleteRecords)
  await step('too-large-is-refused', tooLargeIsRefused)
  if (groups) await step('group-classic', group)
  await step('transactions', transactions)
  if (groups) await step('transactions-group', transactionsGroup)
  await admin.disconnect()
  process.exit(failed > 0 ? 1 : 0)
}

main().catch(error => {
  console.log(`FAILED kafkajs-start\n    ${error.stack}`)
  process.exit(1)
})
