// Reads simulations from stdin, a JSON array of what runSimulation takes, and writes a JSON array of verdicts:
// "Allowed", "ImplicitlyDenied", "ExplicitlyDenied", or "error: ..." where the request itself cannot be.
import { readFileSync } from 'node:fs'
import { runSimulation } from '@cloud-copilot/iam-simulate'

async function verdict(simulation) {
  const response = await runSimulation(simulation, {})
  if (response.resultType === 'error') return `error: ${JSON.stringify(response.errors)}`
  return response.overallResult
}

const simulations = JSON.parse(readFileSync(0, 'utf8'))
process.stdout.write(JSON.stringify(await Promise.all(simulations.map(verdict))))
